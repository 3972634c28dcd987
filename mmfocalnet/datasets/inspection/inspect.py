"""Finding the datasets of a config and the inspection that each needs."""

from __future__ import annotations

from collections.abc import Iterator

from mmfocalnet.datasets.checks import find_kind, join_root
from mmfocalnet.datasets.inspection.coco import inspect_coco
from mmfocalnet.datasets.inspection.findings import Report
from mmfocalnet.datasets.inspection.panoptic import inspect_panoptic
from mmfocalnet.datasets.inspection.semantic import inspect_semantic
from mmfocalnet.errors import ConfigError


def find_datasets(dataset: dict) -> Iterator[dict]:
    """Find the datasets inside those that concatenate, repeat or balance others.

    Args:
        dataset: Config of a dataset.

    Yields:
        Configs of datasets that read files.
    """
    inner = dataset.get('datasets') or [dataset.get('dataset')]
    if inner == [None]:
        yield dataset
        return
    for part in inner:
        yield from find_datasets(part)


def inspect_dataset(dataset: dict) -> Report:
    """Go through a dataset's annotations and pictures, with a progress bar.

    MMEngine's default scope must be that of the config.

    Args:
        dataset: Config of a dataset in COCO's format, in its panoptic format, or of semantic
            label maps.

    Returns:
        What is wrong, and how often each class is labelled.

    Raises:
        ConfigError: If it is of another kind, or its files are not on this machine.
        DataError: If its annotations cannot be read at all.
    """
    kind = find_kind(dataset)
    bases = {base.__name__ for base in kind.__mro__} if kind else set()
    path = join_root(dataset, dataset.get('ann_file'))
    if '://' in path:
        raise ConfigError(f'{path} is not on this machine: only files can be checked.')
    if 'CocoPanopticDataset' in bases:
        return inspect_panoptic(dataset)
    if hasattr(kind, 'COCOAPI'):
        return inspect_coco(dataset)
    if 'BaseSegDataset' in bases:
        return inspect_semantic(dataset)
    raise ConfigError(
        f'{dataset.get("type")} is a dataset that cannot be checked: expected one in COCO format '
        '(CocoDataset, CocoPanopticDataset or a kind of them) or of label maps (BaseSegDataset).'
    )
