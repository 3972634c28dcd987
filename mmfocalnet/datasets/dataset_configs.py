"""Find the datasets of a config, their Python classes and their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mmengine.registry import DATASETS

from mmfocalnet.files import is_url


def find_datasets(dataset: Any) -> Iterator[Any]:
    """Unwrap datasets that concatenate, repeat or balance others.

    Args:
        dataset: A built dataset or the config of one.

    Yields:
        The datasets, or their configs, that read files.
    """

    def part(name: str) -> Any:
        return dataset.get(name) if isinstance(dataset, dict) else getattr(dataset, name, None)

    wrapped = part('datasets') or [part('dataset')]
    if wrapped == [None]:
        yield dataset
        return
    for inner in wrapped:
        yield from find_datasets(inner)


def dataset_class(dataset: dict) -> type | None:
    """The class that a dataset's config specifies; None if it is not registered."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)


def base_names(kind: type | None) -> set[str]:
    """Names of a class and its base classes; empty for None."""
    return {base.__name__ for base in getattr(kind, '__mro__', ())}


def loads_as_coco(dataset: dict) -> bool:
    """Whether a dataset reads its annotations as mmdet's ``CocoDataset`` does."""
    kind = dataset_class(dataset)
    if not hasattr(kind, 'COCOAPI'):
        return False
    from mmdet.datasets import ADE20KPanopticDataset, CocoDataset, CocoPanopticDataset

    known = (CocoDataset, CocoPanopticDataset, ADE20KPanopticDataset)
    return kind.load_data_list is CocoDataset.load_data_list and any(
        kind.parse_data_info is one.parse_data_info for one in known
    )


def join_root(dataset: dict, path: Any) -> str:
    """Join ``data_root`` and a path of a dataset; empty unless the path is a string."""
    return os.path.join(dataset.get('data_root') or '', path) if isinstance(path, str) else ''


def annotation_path(part: dict) -> str:
    """The annotation file of a dataset or metric, absolute unless it is a URL; empty if none."""
    path = join_root(part, part.get('ann_file'))
    return os.path.abspath(path) if path and not is_url(path) else path
