"""Measures that MMEngine, mmdet and mmseg do not have."""

from mmfocalnet.evaluation.accuracy import TopKAccuracy

__all__ = ['TopKAccuracy']
