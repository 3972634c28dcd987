"""Pictures of training runs and of what a model looks at."""

from mmfocalnet.visualization.curves import draw_curves, metrics, read_history
from mmfocalnet.visualization.draw_maps import (
    draw_gates,
    draw_kernels,
    draw_modulator,
    draw_receptive_field,
    save_figure,
    upsample_map,
)
from mmfocalnet.visualization.maps import (
    ModulationMaps,
    ReceptiveField,
    find_block,
    find_focalnet,
    level_kernels,
    modulation_maps,
    prepare_image,
    receptive_field,
    watch_modulation,
)
from mmfocalnet.visualization.sheet import draw_sheet

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
