"""Hooks of MMEngine's runner that our configs use."""

from mmfocalnet.engine.hooks.check_labels import CheckLabelsHook
from mmfocalnet.engine.hooks.check_losses import CheckLossesHook
from mmfocalnet.engine.hooks.checkpoint import AtomicCheckpointHook
from mmfocalnet.engine.hooks.param_scheduler import TolerantParamSchedulerHook
from mmfocalnet.engine.hooks.seed_iterations import SeedIterationsHook
from mmfocalnet.engine.hooks.unreadable_files import UnreadableFilesHook
from mmfocalnet.engine.hooks.visualization import ClassVisualizationHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'ClassVisualizationHook',
    'SeedIterationsHook',
    'TolerantParamSchedulerHook',
    'UnreadableFilesHook',
]
