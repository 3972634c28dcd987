"""Figures of training runs and of the focal modulation inside a model."""

from mmfocalnet.visualization.curves import draw_curves
from mmfocalnet.visualization.figures import (
    draw_gates,
    draw_kernels,
    draw_modulator,
    draw_receptive_field,
    draw_sheet,
    save_figure,
    upsample_map,
)
from mmfocalnet.visualization.modulation import (
    ModulationMaps,
    find_block,
    find_focalnet,
    level_kernels,
    modulation_maps,
    prepare_image,
    watch_modulation,
)
from mmfocalnet.visualization.receptive_fields import ReceptiveField, receptive_field
from mmfocalnet.visualization.training_log import metrics, read_history

__all__ = [
    'ModulationMaps',
    'ReceptiveField',
    'draw_curves',
    'draw_gates',
    'draw_kernels',
    'draw_modulator',
    'draw_receptive_field',
    'draw_sheet',
    'find_block',
    'find_focalnet',
    'level_kernels',
    'metrics',
    'modulation_maps',
    'prepare_image',
    'read_history',
    'receptive_field',
    'save_figure',
    'upsample_map',
    'watch_modulation',
]
