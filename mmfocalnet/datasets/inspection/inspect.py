"""Finding the datasets of a config and the inspection that each needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmfocalnet.datasets.checks import find_kind, join_root, loads_as_coco
from mmfocalnet.datasets.inspection.coco import inspect_coco
from mmfocalnet.datasets.inspection.findings import Report
from mmfocalnet.datasets.inspection.panoptic import inspect_panoptic
from mmfocalnet.datasets.inspection.semantic import inspect_semantic
from mmfocalnet.errors import ConfigError, DataError


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


def inspect_dataset(dataset: dict, evaluator: Any = None) -> Report:
    """Go through a dataset's annotations and images, with a progress bar.

    MMEngine's default scope must be that of the config.

    Args:
        dataset: Config of a dataset in COCO's format, in its panoptic format, or of semantic
            label maps.
        evaluator: Config of what evaluates predictions on it, which reads more of the
            annotations than training; None for training.

    Returns:
        What is wrong, and how often each class is labelled.

    Raises:
        ConfigError: If it is of another kind, or its files are not on this machine, or its
            classes are not strings.
        DataError: If its annotations cannot be read at all.
    """
    kind = find_kind(dataset)
    path = join_root(dataset, dataset.get('ann_file'))
    if '://' in path:
        raise ConfigError(f'{path} is not on this machine: only files can be checked.')
    if hasattr(kind, 'COCOAPI'):
        return _choose(kind)(dataset, evaluator, with_images=True)
    if kind and 'BaseSegDataset' in _bases(kind):
        return inspect_semantic(dataset)
    raise ConfigError(
        f'{dataset.get("type")} is a dataset that cannot be checked: expected one in COCO format '
        '(CocoDataset, CocoPanopticDataset or a kind of them) or of label maps (BaseSegDataset).'
    )


def check_annotations(dataset: dict, evaluator: Any = None) -> None:
    """Refuse an annotation file with errors; images are not opened.

    Args:
        dataset: Config of a dataset. Others than `mmdet.datasets.CocoDataset` and those that
            load like it pass, and so do files that are not on this machine.
        evaluator: As in `inspect_dataset`.

    Raises:
        ConfigError: If the config's classes are not strings.
        DataError: If there are errors in the file.
    """
    path = join_root(dataset, dataset.get('ann_file'))
    if not loads_as_coco(dataset) or not path or '://' in path:
        return
    report = _choose(find_kind(dataset))(dataset, evaluator, with_images=False)
    if report.findings.count(errors=True):
        raise DataError(
            f'{path} has {report.findings.count(errors=True)} errors: '
            f'{report.findings.summary()}. Correct them; python tools/check_dataset.py CONFIG '
            'lists them.'
        )


def _choose(kind: type) -> Callable[[dict, Any, bool], Report]:
    return inspect_panoptic if 'CocoPanopticDataset' in _bases(kind) else inspect_coco


def _bases(kind: type) -> set[str]:
    return {base.__name__ for base in kind.__mro__}
