"""Checks of semantic label maps before training: missing files and maps without labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from mmfocalnet.datasets.dataset_configs import base_names, dataset_class
from mmfocalnet.datasets.image_files import decode_label_map
from mmfocalnet.errors import DataError
from mmfocalnet.files import is_url

IGNORED = 255
"""The value of pixels that loss and score leave out."""


def check_label_maps(dataset: dict, tolerance: float = 0.0) -> None:
    """Check that the images and label maps of a dataset exist and have a label to learn.

    Folders are listed. Maps are decoded until one has a label, usually the first one.

    Args:
        dataset: Config of a ``BaseSegDataset`` or a subclass that lists files in the same way.
            Other datasets pass, and so do files on other machines.
        tolerance: Share of the images whose files may be missing; above 0, one file may always
            be missing. Defaults to 0.

    Raises:
        DataError: If there are no images or no label maps, files are missing, images are not
            regular files, or no map has a label to learn.
    """
    if not _lists_files(dataset):
        return
    try:
        source = build_source(dataset)
    except DataError:  # for example if a user-defined class accepts fewer arguments
        return
    samples = source.data_list
    loaders = str(dataset.get('pipeline'))
    if not samples:
        raise DataError(
            f'{source.data_prefix.get("img_path")} has no files *{source.img_suffix}: copy the '
            'images there, or correct data_prefix and img_suffix of the dataset.'
        )
    if 'seg_map_path' not in samples[0] and 'LoadAnnotations' in loaders:
        raise DataError(
            f'data_prefix of {dataset["type"]} has no seg_map_path, and LoadAnnotations of its '
            "pipeline reads label maps: add their folder, seg_map_path='...'."
        )
    for path in irregular_images(source):
        raise DataError(f'{path} is not a regular file: remove it, or copy the image there.')
    paths = [
        sample[key] for key in ('img_path', 'seg_map_path') for sample in samples if key in sample
    ]
    missing = _missing(paths, source.data_prefix.values())
    if len(missing) > (max(1, tolerance * len(samples)) if tolerance else 0):
        raise DataError(
            f'{missing[0]} is missing ({len(missing)} missing files in all, of {len(samples)} '
            'images): add the files or remove their images. List them with python '
            'tools/check_dataset.py CONFIG.'
        )
    # Loaders with another name may map the values to other labels.
    if re.search(r'\bLoadAnnotations\b', loaders):
        _check_labels(source)


def build_source(dataset: dict) -> Any:
    """Build an mmseg dataset from its config in order to list its files.

    Raises:
        DataError: If mmseg does not accept the settings.
    """
    # Serialised, the list would not be available as data_list.
    settings = dict(dataset, pipeline=[], serialize_data=False, lazy_init=False)
    try:
        return DATASETS.build(settings)
    except Exception as error:
        raise DataError(
            f'{dataset["type"]} does not accept its settings ({error}): correct the dataset of '
            'the config.'
        ) from error


def irregular_images(source: Any) -> list[str]:
    """Find images that mmseg does not list because they are not regular files, such as FIFOs."""
    folder = source.data_prefix.get('img_path')
    if source.ann_file or not folder:
        return []
    listed = {os.path.normpath(sample['img_path']) for sample in source.data_list}
    return [
        path
        for path in _walk(folder)
        if path.endswith(source.img_suffix)
        and os.path.normpath(path) not in listed
        and not os.path.isfile(path)
    ]


def label_of(value: int, source: Any) -> int:
    """The label that mmseg makes of a value of a map; values that exceed 8 bits are unchanged."""
    if not 0 <= value <= 255:
        return value
    if source.reduce_zero_label:
        # 0 and 255 become 255, the others one less.
        value = IGNORED if value in (0, IGNORED) else value - 1
    return (source.label_map or {}).get(value, value)


def blank_fault(values: Iterable[int], source: Any) -> str | None:
    """Find out whether the maps of a dataset have no label to learn.

    Masks from drawing programs have the values 0 and 255. mmseg ignores 255, which leaves the
    background as the only label.

    Args:
        values: All values in the maps.
        source: The dataset, from `build_source`.

    Returns:
        The folder and what is wrong; None if there are labels, or no values.
    """
    values = set(values)
    labels = {label_of(value, source) for value in values} - {IGNORED}
    several = len(source.metainfo.get('classes') or ()) > 1
    if not values or (labels and not (several and values == {0, IGNORED})):
        return None
    folder = source.data_prefix.get('seg_map_path')
    found = (
        f'{folder}: all label maps have only the values {" and ".join(map(str, sorted(values)))}'
    )
    if values == {0, IGNORED}:
        return (
            f'{found}, and pixels of {IGNORED} are ignored: replace it by the number of the class, '
            'such as 1'
        )
    return f'{found}, and all their pixels are ignored'


def _lists_files(dataset: dict) -> bool:
    kind = dataset_class(dataset)
    if 'BaseSegDataset' not in base_names(kind):
        return False
    from mmseg.datasets import BaseSegDataset

    prefixes = [dataset.get('data_root'), *(dataset.get('data_prefix') or {}).values()]
    is_remote = dataset.get('backend_args') or any(map(is_url, prefixes))
    return kind.load_data_list is BaseSegDataset.load_data_list and not is_remote


def _missing(paths: list[str], folders: Iterable[str | None]) -> list[str]:
    """The paths that do not exist; on a network, listing folders is faster than a stat each."""
    found = {path for folder in folders if folder for path in _walk(folder)}
    return [path for path in paths if path not in found and not os.path.exists(path)]


def _walk(folder: str) -> Iterator[str]:
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (os.path.join(place, name) for name in names)


def _check_labels(source: Any) -> None:
    values: set[int] = set()
    for sample in source.data_list:
        labels = decode_label_map(sample['seg_map_path']) if 'seg_map_path' in sample else ''
        if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind != 'f':
            values.update(np.unique(labels).tolist())
            if not blank_fault(values, source):
                return
    if fault := blank_fault(values, source):
        raise DataError(f'{fault}.')
