"""The generated sample set that the demo and the tests train on."""

from .shapes import CLASSES, METAINFO, STUFF, THINGS, Sample, Segment, draw_image, make_shapes

__all__ = [
    'CLASSES',
    'METAINFO',
    'STUFF',
    'THINGS',
    'Sample',
    'Segment',
    'draw_image',
    'make_shapes',
]
