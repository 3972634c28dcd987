"""Focal modulation, the FocalNet backbone, an image classifier and a neck."""

from mmfocalnet.archs import ARCHS, find_arch
from mmfocalnet.models.classifier import FocalNetClassifier
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import FocalNet, FocalNetBlock
from mmfocalnet.models.mixers import MIXERS
from mmfocalnet.models.pretrained import load_pretrained
from mmfocalnet.models.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = [
    'ARCHS',
    'MIXERS',
    'FocalModulation',
    'FocalNet',
    'FocalNetBlock',
    'FocalNetClassifier',
    'SimpleFeaturePyramid',
    'find_arch',
    'load_pretrained',
]
