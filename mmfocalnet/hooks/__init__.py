"""Hooks of MMEngine's runner that our configs use."""

from .checkpoints import AtomicCheckpointHook
from .classes import ClassVisualizationHook
from .labels import CheckLabelsHook
from .losses import CheckLossesHook
from .metrics import TolerantParamSchedulerHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'ClassVisualizationHook',
    'TolerantParamSchedulerHook',
]
