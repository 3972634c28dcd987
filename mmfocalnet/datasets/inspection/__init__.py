"""Inspection of a dataset before training."""

from mmfocalnet.datasets.inspection.inspect_dataset import (
    check_annotations,
    find_evaluated_datasets,
    inspect_dataset,
)

__all__ = ['check_annotations', 'find_evaluated_datasets', 'inspect_dataset']
