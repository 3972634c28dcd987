"""Inspection of a dataset before training."""

from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings, Kind, Report
from mmfocalnet.datasets.inspection.inspect_dataset import (
    check_annotations,
    find_evaluated,
    inspect_dataset,
)

__all__ = [
    'ClassCounts',
    'Findings',
    'Kind',
    'Report',
    'check_annotations',
    'find_evaluated',
    'inspect_dataset',
]
