"""Everything that is registered in MMEngine. `mmfocalnet.first_use` imports this module."""

from importlib.util import find_spec

from mmfocalnet.compat import ensure_mmcv_ops, ensure_panopticapi

ensure_mmcv_ops()  # before anything imports mmcv.ops
ensure_panopticapi()  # mmdet looks for it when imported

from mmfocalnet.datasets import ImageFolder
from mmfocalnet.datasets.skip_unreadable import SkipUnreadable
from mmfocalnet.engine.fused_adamw import FusedAdamW
from mmfocalnet.engine.hooks import (
    AtomicCheckpointHook,
    CheckLabelsHook,
    CheckLossesHook,
    ClassVisualizationHook,
    MatchClassesHook,
    PlainParamGroupsHook,
    SeedIterationsHook,
    TolerantParamSchedulerHook,
    UnreadableFilesHook,
)
from mmfocalnet.engine.layer_decay import FocalNetLayerDecayOptimizerConstructor
from mmfocalnet.engine.samplers import SeededInfiniteSampler, SeededSampler
from mmfocalnet.engine.seeding import SeededClassBalancedDataset, SeedSample
from mmfocalnet.evaluation import TopKAccuracy
from mmfocalnet.models import FocalModulation, FocalNet, FocalNetClassifier
from mmfocalnet.registry import warn_if_shadowed

warn_if_shadowed()

if find_spec('mmengine._strategy'):  # MMEngine 0.8 and later
    import mmfocalnet.engine.fsdp  # noqa: F401

__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'ClassVisualizationHook',
    'FocalModulation',
    'FocalNet',
    'FocalNetClassifier',
    'FocalNetLayerDecayOptimizerConstructor',
    'FusedAdamW',
    'ImageFolder',
    'MatchClassesHook',
    'PlainParamGroupsHook',
    'SeedIterationsHook',
    'SeedSample',
    'SeededClassBalancedDataset',
    'SeededInfiniteSampler',
    'SeededSampler',
    'SkipUnreadable',
    'TolerantParamSchedulerHook',
    'TopKAccuracy',
    'UnreadableFilesHook',
]
