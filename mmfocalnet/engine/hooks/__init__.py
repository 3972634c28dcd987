"""Hooks of MMEngine's runner that our configs use."""

from mmfocalnet.engine.hooks.atomic_checkpoint import AtomicCheckpointHook
from mmfocalnet.engine.hooks.check_labels import CheckLabelsHook
from mmfocalnet.engine.hooks.check_losses import CheckLossesHook
from mmfocalnet.engine.hooks.class_visualization import ClassVisualizationHook
from mmfocalnet.engine.hooks.match_classes import MatchClassesHook
from mmfocalnet.engine.hooks.plain_param_groups import PlainParamGroupsHook
from mmfocalnet.engine.hooks.seed_iterations import SeedIterationsHook
from mmfocalnet.engine.hooks.tolerant_param_scheduler import TolerantParamSchedulerHook
from mmfocalnet.engine.hooks.unreadable_files import UnreadableFilesHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'ClassVisualizationHook',
    'MatchClassesHook',
    'PlainParamGroupsHook',
    'SeedIterationsHook',
    'TolerantParamSchedulerHook',
    'UnreadableFilesHook',
]
