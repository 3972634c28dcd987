"""Hooks of MMEngine's runner that our configs use."""

from .checkpoints import AtomicCheckpointHook
from .classes import ClassVisualizationHook
from .labels import CheckLabelsHook
from .losses import CheckLossesHook

__all__ = ['AtomicCheckpointHook', 'CheckLabelsHook', 'CheckLossesHook', 'ClassVisualizationHook']
