"""Faults of datasets that can be named before anything is built or trained.

Annotation files are looked through as bytes: parsing COCO's 450 MB again would double the start
of a training.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from mmfocalnet.errors import ConfigError, DataError

_LIST = re.compile(rb'"categories"\s*:\s*(?=\[)')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*"([^"]+)\.(jpg|png)"')


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
                f'({_some(classes)}): set it to {len(classes)}, or metainfo of the dataset.'
            )


def check_coco(dataset: dict) -> None:
    """Check a COCO-format dataset's categories and panoptic maps against its files.

    Args:
        dataset: Config of the dataset, a ``CocoDataset`` of mmdet or one that loads like it;
            anything else passes, and so do files that are not on this machine.

    Raises:
        DataError: If its categories are not those of ``metainfo``, in this order, or if panoptic
            maps of its images are not there.
    """
    kind = find_kind(dataset)
    path = join_root(dataset, dataset.get('ann_file'))
    if not hasattr(kind, 'COCOAPI') or not _loads_as_coco(kind) or not os.path.isfile(path):
        return
    with _contents(path) as content:
        _check_categories(path, content, find_classes(dataset))
        maps = (dataset.get('data_prefix') or {}).get('seg')
        if maps and kind.__name__ == 'CocoPanopticDataset':
            _check_maps(path, content, join_root(dataset, maps))


def find_kind(dataset: dict) -> type | None:
    """The class of a dataset's config; None if no package has it."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(kind)


def _loads_as_coco(kind: type) -> bool:
    # Objects365 and LVIS number their categories in ways of their own.
    from mmdet.datasets import CocoDataset

    return kind.load_data_list is CocoDataset.load_data_list


def find_classes(dataset: dict) -> Sequence[str]:
    """The classes that a dataset's config names, or those of its type.

    Raises:
        ConfigError: If they are a text.
    """
    kind = find_kind(dataset)
    if not hasattr(kind, '_load_metainfo'):
        return ()
    classes = kind._load_metainfo(dataset.get('metainfo')).get('classes') or ()
    if isinstance(classes, str):
        raise ConfigError(
            f'metainfo has classes={classes!r}, a text: add the comma, classes=({classes!r},).'
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


@contextmanager
def _contents(path: str) -> Iterator[mmap.mmap]:
    if not os.path.getsize(path):
        raise DataError(f'{path} is empty: annotations in COCO format were expected.')
    with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        yield content


def _check_categories(path: str, content: mmap.mmap, classes: Sequence[str]) -> None:
    """mmdet drops classes that the file lacks, and numbers the others in the file's order."""
    names = [str(category['name']) for category in _categories(path, content)]
    if [name for name in names if name in classes] == list(classes):
        return
    missing = [name for name in classes if name not in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    fault = 'the order differs'
    if missing:
        fault = f'the file lacks {_some(missing)}'
    elif twice:
        fault = f'the file has {_some(twice)} more than once'
    raise DataError(
        f"{path} has the categories {_some(names)}, but the config's metainfo names "
        f'{_some(classes)} ({fault}): set metainfo=dict(classes=(...)) of the datasets and '
        "num_classes of the heads to the file's, in its order."
    )


def _categories(path: str, content: mmap.mmap) -> list[dict[str, Any]]:
    for match in _LIST.finditer(content):
        # The list is short as a rule, but the whole file may follow it.
        text = content[match.end() : match.end() + 2**20].decode('utf-8', 'ignore')
        try:
            categories = json.JSONDecoder().raw_decode(text)[0]
        except ValueError:
            continue
        if _are_categories(categories):
            return categories
    try:
        categories = json.loads(content[:])['categories']
    except (ValueError, TypeError, KeyError):
        categories = None
    if not _are_categories(categories):
        raise DataError(
            f'{path} has no list of categories: annotations in COCO format were expected, with '
            '"images", "annotations" and "categories".'
        )
    return categories


def _are_categories(found: Any) -> bool:
    return bool(found) and all(
        isinstance(category, dict) and 'name' in category and 'id' in category for category in found
    )


def _check_maps(path: str, content: mmap.mmap, folder: str) -> None:
    """mmdet looks for the map of x.jpg at x.png, whatever the annotation names."""
    named = {'jpg': set(), 'png': set()}
    for match in _FILE_NAME.finditer(content):
        named[match[2].decode()].add(f'{match[1].decode()}.png')
    maps = named['jpg'] or named['png']
    unseen = maps - set(os.listdir(folder))
    missing = sorted(name for name in unseen if not Path(folder, name).is_file())
    if missing:
        raise DataError(
            f'{folder} lacks {len(missing)} of the {len(maps)} panoptic maps of the images in '
            f'{path} ({_some(missing)}): unpack {Path(folder).name}.zip there, or correct '
            'data_prefix.seg of the dataset.'
        )


def _some(names: Sequence[str]) -> str:
    shown = ', '.join(map(str, names[:4]))
    return f'{shown}, ... ({len(names)} in all)' if len(names) > 4 else shown
