"""Classes of a dataset's config, and whether the heads of a model predict as many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.registry import DATASETS

from mmfocalnet.errors import ConfigError
from mmfocalnet.text import short_repr


def check_classes(dataset: dict, model: dict) -> None:
    """Compare the number of a dataset's classes with what the heads of a model predict.

    Args:
        dataset: Config of the dataset; one without classes passes.
        model: Config of the detector or segmentor.

    Raises:
        ConfigError: If they differ.
    """
    classes = find_classes(dataset)
    if not classes:
        return
    for setting, number in _predicted(model):
        # mmseg's binary models may predict one class against the rest.
        if number not in (len(classes), 1):
            raise ConfigError(
                f'model.{setting} is {number}, but the dataset has {len(classes)} classes '
                f'({some(classes)}): set it to {len(classes)}, or metainfo of the dataset.'
            )


def find_kind(dataset: dict) -> type | None:
    """The class of a dataset's config; None if no package has it."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)


def base_names(kind: type | None) -> set[str]:
    """Names of a class and of those that it inherits from; none for None."""
    return {base.__name__ for base in getattr(kind, '__mro__', ())}


def loads_as_coco(dataset: dict) -> bool:
    """Whether a dataset reads its annotations as mmdet's ``CocoDataset`` does."""
    kind = find_kind(dataset)
    if not hasattr(kind, 'COCOAPI'):
        return False
    from mmdet.datasets import ADE20KPanopticDataset, CocoDataset, CocoPanopticDataset

    known = (CocoDataset, CocoPanopticDataset, ADE20KPanopticDataset)
    return kind.load_data_list is CocoDataset.load_data_list and any(
        kind.parse_data_info is one.parse_data_info for one in known
    )


def find_classes(dataset: dict) -> Sequence[str]:
    """The classes that a dataset's config names, or those of its type.

    Raises:
        ConfigError: If they are a single string, or not strings.
    """
    kind = find_kind(dataset)
    if not hasattr(kind, '_load_metainfo'):
        return ()
    metainfo = dataset.get('metainfo')
    if not isinstance(metainfo, (dict, type(None))):
        raise ConfigError(
            f'metainfo={short_repr(metainfo)} must be a dict, such as dict(classes=(...)).'
        )
    classes = kind._load_metainfo(metainfo).get('classes') or ()
    if isinstance(classes, str):
        raise ConfigError(
            f'metainfo has classes={classes!r}, a string: add the comma, classes=({classes!r},).'
        )
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(
            f'metainfo has classes={short_repr(classes)}, expected strings: put each name in '
            "quotes, such as classes=('1', '2')."
        )
    return classes


def join_root(dataset: dict, path: Any) -> str:
    """A path of a dataset's config from where it runs; empty if it is no path."""
    return os.path.join(dataset.get('data_root') or '', path) if isinstance(path, str) else ''


def _predicted(model: dict) -> Iterator[tuple[str, int]]:
    """The number of classes of each head, with the name of its setting."""
    roi_head = model.get('roi_head') or {}
    heads = {
        **{key: model.get(key) for key in ('bbox_head', 'decode_head', 'auxiliary_head')},
        **{f'roi_head.{key}': roi_head.get(key) for key in ('bbox_head', 'mask_head')},
    }
    for key, head in heads.items():
        parts = head if isinstance(head, (list, tuple)) else [head]
        for number, part in enumerate(parts):
            if isinstance((part or {}).get('num_classes'), int):
                place = f'.{number}' if parts is head else ''
                yield f'{key}{place}.num_classes', part['num_classes']
    panoptic = model.get('panoptic_head') or {}
    if 'num_things_classes' in panoptic and 'num_stuff_classes' in panoptic:
        number = panoptic['num_things_classes'] + panoptic['num_stuff_classes']
        yield 'panoptic_head.num_things_classes + num_stuff_classes', number


def some(names: Sequence[str]) -> str:
    """At most four names in quotes, and how many there are."""
    shown = ', '.join(f'"{name}"' for name in names[:4])
    return f'{shown}, ... ({len(names)} in all)' if len(names) > 4 else shown
