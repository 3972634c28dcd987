"""Images in folders per class, and the generated sets that demos and tests train on."""

from mmfocalnet.datasets.image_folder import ImageFolder
from mmfocalnet.datasets.shape_crops import make_shape_crops
from mmfocalnet.datasets.shapes import (
    CLASSES,
    METAINFO,
    STUFF,
    THINGS,
    Sample,
    Segment,
    draw_image,
    make_shapes,
)
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
