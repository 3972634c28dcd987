"""mmfocalnet: Focal Modulation Networks as a backbone for OpenMMLab 2.x.

Importing the package registers everything: ``type='FocalNet'`` works in any mmdet or mmseg
config after ``custom_imports = dict(imports=['mmfocalnet'])``.
"""

from importlib.util import find_spec

from mmfocalnet.compat import ensure_mmcv_ops, ensure_panopticapi

ensure_mmcv_ops()  # before anything imports mmcv.ops
ensure_panopticapi()  # mmdet looks for it when imported

from mmfocalnet.checkpoints.schemes import register_schemes  # noqa: E402
from mmfocalnet.datasets import ImageFolder  # noqa: E402
from mmfocalnet.datasets.unreadable import SkipUnreadable, UnreadableFilesHook  # noqa: E402
from mmfocalnet.evaluation import TopKAccuracy  # noqa: E402
from mmfocalnet.hooks import (  # noqa: E402
    AtomicCheckpointHook,
    CheckLabelsHook,
    CheckLossesHook,
    ClassVisualizationHook,
    TolerantParamSchedulerHook,
)
from mmfocalnet.models import FocalModulation, FocalNet, FocalNetClassifier  # noqa: E402
from mmfocalnet.optim import FocalNetLayerDecayOptimizerConstructor  # noqa: E402
from mmfocalnet.registration import warn_of_namesakes  # noqa: E402
from mmfocalnet.seeding import (  # noqa: E402
    SeededInfiniteSampler,
    SeededSampler,
    SeedIterationsHook,
)

register_schemes()
warn_of_namesakes()

if find_spec('mmengine._strategy'):  # MMEngine 0.8 and later
    import mmfocalnet.sharding  # noqa: F401

__version__ = '0.1.0'
__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'ClassVisualizationHook',
    'FocalModulation',
    'FocalNet',
    'FocalNetClassifier',
    'FocalNetLayerDecayOptimizerConstructor',
    'ImageFolder',
    'SeedIterationsHook',
    'SeededInfiniteSampler',
    'SeededSampler',
    'SkipUnreadable',
    'TolerantParamSchedulerHook',
    'TopKAccuracy',
    'UnreadableFilesHook',
    '__version__',
]
