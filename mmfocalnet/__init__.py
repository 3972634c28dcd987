"""mmfocalnet: Focal Modulation Networks as a backbone for OpenMMLab 2.x.

Importing the package registers everything: ``type='FocalNet'`` works in any mmdet or mmseg
config after ``custom_imports = dict(imports=['mmfocalnet'])``.
"""

from mmfocalnet.compat import ensure_mmcv_ops, ensure_panopticapi

ensure_mmcv_ops()  # before anything imports mmcv.ops
ensure_panopticapi()  # mmdet looks for it when imported

from mmfocalnet.hooks import AtomicCheckpointHook, CheckLabelsHook, CheckLossesHook  # noqa: E402
from mmfocalnet.models import FocalModulation, FocalNet  # noqa: E402
from mmfocalnet.optim import FocalNetLayerDecayOptimizerConstructor  # noqa: E402
from mmfocalnet.seeding import (  # noqa: E402
    SeededInfiniteSampler,
    SeededSampler,
    SeedIterationsHook,
)

__version__ = '0.1.0'
__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'FocalModulation',
    'FocalNet',
    'FocalNetLayerDecayOptimizerConstructor',
    'SeedIterationsHook',
    'SeededInfiniteSampler',
    'SeededSampler',
    '__version__',
]
