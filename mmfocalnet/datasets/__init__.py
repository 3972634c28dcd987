"""Datasets: images in folders per class, the generated sample sets, checks before training."""

from mmfocalnet.datasets.image_folder import ImageFolder
from mmfocalnet.datasets.shapes import (
    CLASSES,
    METAINFO,
    STUFF,
    THINGS,
    Sample,
    Segment,
    draw_image,
)
from mmfocalnet.datasets.shapes_files import make_shape_crops, make_shapes
from mmfocalnet.datasets.transforms import PackImage, RandomResizedCrop

__all__ = [
    'CLASSES',
    'METAINFO',
    'STUFF',
    'THINGS',
    'ImageFolder',
    'PackImage',
    'RandomResizedCrop',
    'Sample',
    'Segment',
    'draw_image',
    'make_shape_crops',
    'make_shapes',
]
