"""Going through a dataset before anyone trains on it."""

from .findings import ClassCounts, Findings, Kind, Report
from .inspect import find_datasets, inspect_dataset

__all__ = ['ClassCounts', 'Findings', 'Kind', 'Report', 'find_datasets', 'inspect_dataset']
