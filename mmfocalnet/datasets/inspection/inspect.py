"""Finding the datasets of a config and the inspection that each needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmfocalnet.datasets.classes import base_names, find_kind, join_root, loads_as_coco
from mmfocalnet.datasets.inspection.coco import inspect_coco
from mmfocalnet.datasets.inspection.findings import Report
from mmfocalnet.datasets.inspection.panoptic import inspect_panoptic
from mmfocalnet.datasets.inspection.semantic import inspect_semantic
from mmfocalnet.errors import ConfigError, DataError
from mmfocalnet.files import is_url
from mmfocalnet.registry import type_name


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


def find_evaluated(datasets: Sequence[dict], evaluator: Any) -> Iterator[dict]:
    """Find annotation files in COCO's format that only metrics read.

    The metric of a panoptic model's boxes and masks has such a file.

    Args:
        datasets: Configs of the datasets that are evaluated.
        evaluator: Config of their metrics; None for training.

    Yields:
        Configs of datasets with these files.
    """
    known = {'', *map(_path, datasets)}
    first = next((dataset for dataset in datasets if loads_as_coco(dataset)), None)
    for metric in _metrics(evaluator):
        if first and str(type_name(metric)).endswith('CocoMetric') and _path(metric) not in known:
            folder = (first.get('data_prefix') or {}).get('img')
            meta = find_kind(first)._load_metainfo(first.get('metainfo'))
            yield {
                'type': 'mmdet.CocoDataset',
                'ann_file': metric['ann_file'],
                'data_prefix': {'img': join_root(first, folder)},
                'metainfo': {'classes': meta.get('thing_classes') or meta.get('classes')},
                'test_mode': True,
            }


def _metrics(evaluator: Any) -> list[dict]:
    if isinstance(evaluator, dict):
        evaluator = evaluator.get('metrics', evaluator)
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    return [metric for metric in metrics if isinstance(metric, dict)]


def _path(part: dict) -> str:
    """The annotation file of a dataset or metric, always in the same form; empty if none."""
    path = join_root(part, part.get('ann_file'))
    return os.path.abspath(path) if path and not is_url(path) else path


def inspect_dataset(dataset: dict, evaluator: Any = None, *, with_images: bool = True) -> Report:
    """Go through a dataset's annotations and images, with a progress bar.

    MMEngine's default scope must be that of the config.

    Args:
        dataset: Config of a dataset in COCO's format, in its panoptic format, or of semantic
            label maps.
        evaluator: Config of the metrics; those that read the dataset's annotation file read more
            of it than training. None for training.
        with_images: Whether to read images and panoptic maps; semantic label maps always are.

    Returns:
        What is wrong, and how often each class is labelled.

    Raises:
        ConfigError: If it is of another kind, or its files are not on this machine, or its
            classes are not strings.
        DataError: If its annotations cannot be read at all.
    """
    kind = find_kind(dataset)
    path = join_root(dataset, dataset.get('ann_file'))
    if is_url(path):
        raise ConfigError(f'{path} is not on this machine: only files can be checked.')
    if hasattr(kind, 'COCOAPI'):
        metrics = [
            metric
            for metric in _metrics(evaluator)
            if _path(metric) == _path(dataset) and not metric.get('format_only')
        ]
        inspect = inspect_panoptic if 'CocoPanopticDataset' in base_names(kind) else inspect_coco
        return inspect(dataset, metrics, with_images)
    if 'BaseSegDataset' in base_names(kind):
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
    if not loads_as_coco(dataset) or not path or is_url(path):
        return
    findings = inspect_dataset(dataset, evaluator, with_images=False).findings
    number = findings.count(errors=True)
    if number:
        summary = findings.summary().replace(f'{path}: ', '')
        raise DataError(
            f'{path} has errors ({number}): {summary}. Correct them; python tools/check_dataset.py '
            'CONFIG lists them.'
        )
