"""The focal modulation operator, the FocalNet backbone and its named architectures."""

from mmfocalnet.models.archs import ARCHS, find_arch
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import FocalNet, FocalNetBlock
from mmfocalnet.models.mixers import MIXERS

__all__ = ['ARCHS', 'MIXERS', 'FocalModulation', 'FocalNet', 'FocalNetBlock', 'find_arch']
