"""Inspection of a dataset by its config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmfocalnet.datasets.dataset_configs import (
    annotation_path,
    base_names,
    dataset_class,
    join_root,
    loads_as_coco,
)
from mmfocalnet.datasets.inspection.coco import inspect_coco
from mmfocalnet.datasets.inspection.findings import Report
from mmfocalnet.datasets.inspection.panoptic import inspect_panoptic
from mmfocalnet.datasets.inspection.semantic import inspect_semantic
from mmfocalnet.errors import ConfigError, DataError
from mmfocalnet.files import is_url
from mmfocalnet.registry import type_name


def inspect_dataset(dataset: dict, evaluator: Any = None, *, with_images: bool = True) -> Report:
    """Inspect the annotations and images of a dataset, with a progress bar.

    MMEngine's default scope must be that of the config.

    Args:
        dataset: Config of a dataset in COCO's format, in its panoptic format, or of semantic
            label maps.
        evaluator: Config of the metrics. If a metric reads the dataset's annotation file, the
            fields that only evaluation uses are checked too. Defaults to None: training.
        with_images: Whether to read images and panoptic maps; semantic label maps are always
            read. Defaults to True.

    Returns:
        Errors, warnings, and how often each class is labelled.

    Raises:
        ConfigError: If the dataset is of another type, its files are not on this machine, or its
            classes are not strings.
        DataError: If its annotations cannot be read.
    """
    kind = dataset_class(dataset)
    path = join_root(dataset, dataset.get('ann_file'))
    if is_url(path):
        raise ConfigError(f'{path} is not on this machine: only local files can be checked.')
    if hasattr(kind, 'COCOAPI'):
        metrics = [
            metric
            for metric in _metrics(evaluator)
            if annotation_path(metric) == annotation_path(dataset) and not metric.get('format_only')
        ]
        inspect = inspect_panoptic if 'CocoPanopticDataset' in base_names(kind) else inspect_coco
        return inspect(dataset, metrics, with_images)
    if 'BaseSegDataset' in base_names(kind):
        return inspect_semantic(dataset)
    raise ConfigError(
        f'{dataset.get("type")} cannot be checked, expected a dataset in COCO format '
        '(CocoDataset, CocoPanopticDataset or a subclass) or of label maps (BaseSegDataset).'
    )


def check_annotations(dataset: dict, evaluator: Any = None) -> None:
    """Raise if an annotation file has errors. Images are not opened.

    Args:
        dataset: Config of a dataset. Types other than `mmdet.datasets.CocoDataset` and those that
            load like it pass, and so do files that are not on this machine.
        evaluator: As in `inspect_dataset`.

    Raises:
        ConfigError: If the config's classes are not strings.
        DataError: If the file has errors.
    """
    path = join_root(dataset, dataset.get('ann_file'))
    if not loads_as_coco(dataset) or not path or is_url(path):
        return
    findings = inspect_dataset(dataset, evaluator, with_images=False).findings
    number = findings.total(errors=True)
    if number:
        summary = findings.summary().replace(f'{path}: ', '')
        raise DataError(
            f'{path} has errors ({number}): {summary}. Correct them. List all with python '
            'tools/check_dataset.py CONFIG.'
        )


def find_evaluated_datasets(datasets: Sequence[dict], evaluator: Any) -> Iterator[dict]:
    """Find annotation files in COCO's format that only metrics read.

    An example is the file of boxes and masks with which a panoptic model is evaluated.

    Args:
        datasets: Configs of the datasets of a split.
        evaluator: Config of their metrics; None for training.

    Yields:
        Configs of datasets with these files.
    """
    known = {'', *map(annotation_path, datasets)}
    first = next((dataset for dataset in datasets if loads_as_coco(dataset)), None)
    for metric in _metrics(evaluator) if first else ():
        if str(type_name(metric)).endswith('CocoMetric') and annotation_path(metric) not in known:
            folder = (first.get('data_prefix') or {}).get('img')
            meta = dataset_class(first)._load_metainfo(first.get('metainfo'))
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
