"""Metrics that MMEngine, mmdet and mmseg lack."""

from mmfocalnet.evaluation.accuracy import TopKAccuracy

__all__ = ['TopKAccuracy']
