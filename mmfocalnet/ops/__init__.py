from mmfocalnet.ops.dispatch import (
    PATHS,
    explain,
    feed_forward,
    keep_path,
    linear,
    modulate,
    use_path,
)
from mmfocalnet.ops.layers import is_exact_gelu, runs_as_it_stands
from mmfocalnet.ops.plain import ModulationWeights, gated_sum

__all__ = [
    'PATHS',
    'ModulationWeights',
    'explain',
    'feed_forward',
    'gated_sum',
    'is_exact_gelu',
    'keep_path',
    'linear',
    'modulate',
    'runs_as_it_stands',
    'use_path',
]
