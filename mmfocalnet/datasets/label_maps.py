"""Faults of datasets of semantic label maps that can be found before a training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from mmfocalnet.datasets.classes import base_names, find_kind
from mmfocalnet.datasets.image_faults import read_label_map
from mmfocalnet.errors import DataError
from mmfocalnet.files import is_url

IGNORED = 255
"""The value of pixels that loss and score leave out."""


def check_label_maps(dataset: dict, tolerance: float = 0.0) -> None:
    """Check that images and label maps of a dataset exist and hold a label to learn.

    Folders are listed. Maps are read until one has a label, which is the first one as a rule.

    Args:
        dataset: Config of the dataset, of a kind of ``BaseSegDataset`` that lists its files as
            that does; anything else passes, and so do files that are not on this machine.
        tolerance: Share of the images of which files may be missing; above 0, one file may be
            missing in any case. Defaults to 0.

    Raises:
        DataError: If there are no images, no label maps, files are missing or images are not
            regular files, or all maps together have no label to learn.
    """
    if not _lists_files(dataset):
        return
    try:
        source = build_source(dataset)
    except DataError:  # also of a class of the user's that takes fewer settings
        return
    samples = source.data_list
    if not samples:
        folder = source.data_prefix.get('img_path')
        raise DataError(
            f'{folder} has no files *{source.img_suffix}: put the images there, or correct '
            'data_prefix and img_suffix of the dataset.'
        )
    if 'seg_map_path' not in samples[0] and 'LoadAnnotations' in str(dataset.get('pipeline')):
        raise DataError(
            f'data_prefix of {dataset["type"]} has no seg_map_path, and LoadAnnotations of its '
            "pipeline reads label maps: add their folder, seg_map_path='...'."
        )
    paths = [
        sample[key] for key in ('img_path', 'seg_map_path') for sample in samples if key in sample
    ]
    for path in irregular_images(source):
        raise DataError(f'{path} is not a regular file: remove it, or copy the image there.')
    missing = _missing(paths, source.data_prefix.values())
    if len(missing) > (max(1, tolerance * len(samples)) if tolerance else 0):
        raise DataError(
            f'{missing[0]} is missing ({len(missing)} files missing in all, of {len(samples)} '
            'images): add the files or remove their images; list them with python '
            'tools/check_dataset.py CONFIG.'
        )
    # Other loaders may give other labels.
    if re.search(r'\bLoadAnnotations\b', str(dataset.get('pipeline'))):
        _check_labels(source)


def build_source(dataset: dict) -> Any:
    """Build a dataset of mmseg with a list of its files and without its pipeline.

    Args:
        dataset: Its config.

    Raises:
        DataError: If mmseg does not take the settings.
    """
    # Serialised, the list could not be read at once.
    settings = dict(dataset, pipeline=[], serialize_data=False, lazy_init=False)
    try:
        return DATASETS.build(settings)
    except Exception as error:
        raise DataError(
            f'{dataset["type"]} does not take its settings ({error}): correct the dataset of the '
            'config.'
        ) from error


def irregular_images(source: Any) -> list[str]:
    """Find images that mmseg leaves out because they are not regular files, such as FIFOs.

    Args:
        source: The dataset, as `build_source` builds it.
    """
    folder = source.data_prefix.get('img_path')
    if source.ann_file or not folder:
        return []
    listed = {os.path.normpath(sample['img_path']) for sample in source.data_list}
    others = [path for path in _walk(folder) if os.path.normpath(path) not in listed]
    return [
        path for path in others if path.endswith(source.img_suffix) and not os.path.isfile(path)
    ]


def label_of(value: int, source: Any) -> int:
    """The label that mmseg makes of a value of a map.

    Args:
        value: As stored.
        source: The dataset, as `build_source` builds it.

    Returns:
        The label; values that do not fit into 8 bits, which mmseg misreads, stay as they are.
    """
    if not 0 <= value <= 255:
        return value
    if source.reduce_zero_label:
        # 0 and 255 become 255, the others one less.
        value = IGNORED if value in (0, IGNORED) else value - 1
    return (source.label_map or {}).get(value, value)


def blank_fault(values: Iterable[int], source: Any) -> str | None:
    """Find out whether maps of some values hold no label to learn.

    Masks made by drawing programs hold 0 and 255, and mmseg ignores 255: the background is the only
    label left.

    Args:
        values: All values that occur in the maps of a dataset.
        source: The dataset, as `build_source` builds it.

    Returns:
        What is wrong, or None; None as well if there are no values.
    """
    values = set(values)
    labels = {label_of(value, source) for value in values} - {IGNORED}
    several = len(source.metainfo.get('classes') or ()) > 1
    if not values or (labels and not (several and values == {0, IGNORED})):
        return None
    folder = source.data_prefix.get('seg_map_path')
    found = ' and '.join(map(str, sorted(values)))
    if values == {0, IGNORED}:
        return (
            f'{folder}: all label maps have no values but {found}, and pixels of {IGNORED} are '
            'ignored: replace it by the number of the class, such as 1'
        )
    return f'{folder}: all label maps have no values but {found}, and all their pixels are ignored'


def _lists_files(dataset: dict) -> bool:
    kind = find_kind(dataset)
    if 'BaseSegDataset' not in base_names(kind):
        return False
    from mmseg.datasets import BaseSegDataset

    prefixes = [dataset.get('data_root'), *(dataset.get('data_prefix') or {}).values()]
    elsewhere = dataset.get('backend_args') or any(is_url(prefix) for prefix in prefixes)
    return kind.load_data_list is BaseSegDataset.load_data_list and not elsewhere


def _missing(paths: list[str], folders: Iterable[str | None]) -> list[str]:
    """Those of some paths that do not exist.

    Listing folders is much faster than asking for each file where they are on a network.
    """
    there = {path for folder in folders if folder for path in _walk(folder)}
    return [path for path in paths if path not in there and not os.path.exists(path)]


def _walk(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (os.path.join(place, name) for name in names)


def _check_labels(source: Any) -> None:
    values: set[int] = set()
    for sample in source.data_list:
        labels = read_label_map(sample['seg_map_path']) if 'seg_map_path' in sample else ''
        if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind != 'f':
            values.update(np.unique(labels).tolist())
            if not blank_fault(values, source):
                return
    if fault := blank_fault(values, source):
        raise DataError(f'{fault}.')
