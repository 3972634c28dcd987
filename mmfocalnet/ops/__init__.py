from mmfocalnet.ops.dispatch import (
    PATHS,
    embed_patches,
    explain,
    feed_forward,
    keep_path,
    layer_norm,
    linear,
    modulate,
    use_path,
)
from mmfocalnet.ops.reference import ModulationWeights
from mmfocalnet.ops.unmodified import is_exact_gelu, is_unmodified

__all__ = [
    'PATHS',
    'ModulationWeights',
    'embed_patches',
    'explain',
    'feed_forward',
    'is_exact_gelu',
    'is_unmodified',
    'keep_path',
    'layer_norm',
    'linear',
    'modulate',
    'use_path',
]
