"""Loading of files that may be unreadable: skipped in training, an error in validation and test.

MMEngine's datasets load another sample if a training pipeline returns None. `SkipUnreadable`
returns None for an unreadable file, logs each file once, and stops the run if there are many.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmcv.transforms import BaseTransform, LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from torch.utils.data import Dataset, get_worker_info

from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.datasets.image_files import file_fault, image_fault, shape_fault, value_fault
from mmfocalnet.errors import DataError
from mmfocalnet.files import is_url
from mmfocalnet.registry import register
from mmfocalnet.text import escape

MAX_UNREADABLE = 0.01
"""Share of unreadable files of a training set above which a training run stops."""

_SLOTS = 2**16


@register(TRANSFORMS)
class SkipUnreadable(BaseTransform):
    """Load with another transform; return None if the file is missing or damaged.

    Files are counted over all data loading workers of the process, and logged once each.

    Args:
        load: Config of the transform that reads ``img_path`` or ``seg_map_path``.
    """

    def __init__(self, load: dict) -> None:
        self.load = TRANSFORMS.build(load)
        self.total: int | None = None
        """Number of samples; set in the main process only, workers count them."""
        # Flags by a hash of the path, in shared memory since each worker copies this object.
        self._found = torch.zeros(_SLOTS, dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """Number of unreadable files so far."""
        return int(self._found.count_nonzero())

    def exchange(self) -> None:
        """Merge the counts of all processes of a launch; each of them must call it."""
        found = self._found.clone()
        all_reduce(found, op='max')
        self._found[found.bool()] = 1  # workers may have set other flags meanwhile

    def transform(self, results: dict) -> dict | None:
        """Load a file; None if it is unreadable.

        Raises:
            DataError: If more than one file and more than `MAX_UNREADABLE` of the files are
                unreadable, or if mmseg would misread a label map.
        """
        try:
            return _load(self.load, results)
        except _UnreadableError as error:
            path, fault = error.args
        slot = zlib.crc32(path.encode()) % _SLOTS
        if not self._found[slot]:
            self._found[slot] = 1
            # MMEngine hides warnings, but not errors, of all ranks except the first.
            text = escape(f'{path} {fault}: left out of training.')
            print_log(text, 'current', logging.ERROR)
            self._stop_if_many(path, fault)
        return None

    def _stop_if_many(self, path: str, fault: str) -> None:
        worker = get_worker_info()
        total = count_samples(worker.dataset) if worker else self.total
        if total is None:
            return
        allowed = max(1, int(MAX_UNREADABLE * total))
        if self.count > allowed:
            # Not the count: meanwhile, other workers may find more.
            raise DataError(
                f'At least {allowed + 1} of {total} training samples have unreadable files, more '
                f'than {MAX_UNREADABLE:.0%}. The last one is {path}, which {fault}. List them with '
                'python tools/check_dataset.py CONFIG, then repair or remove them.'
            )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(load={self.load})'


def find_skipping(dataset: Dataset) -> Iterator[SkipUnreadable]:
    """Find the `SkipUnreadable` transforms in the pipelines of a dataset."""
    for pipeline in _pipelines(dataset):
        for transform in pipeline.transforms:
            if isinstance(transform, SkipUnreadable):
                yield transform


def count_samples(dataset: Dataset) -> int:
    """Number of samples of a dataset, without repetitions."""
    return sum(len(inner) for inner in find_datasets(dataset))


def raise_on_unreadable(dataset: Dataset) -> None:
    """Make a dataset raise a `DataError` with the path of the unreadable file.

    Args:
        dataset: A dataset of MMEngine; its pipelines are changed.
    """
    for pipeline in _pipelines(dataset):
        _wrap_loaders(pipeline)


def _pipelines(dataset: Dataset) -> Iterator[Compose]:
    for inner in find_datasets(dataset):
        if isinstance(getattr(inner, 'pipeline', None), Compose):
            yield inner.pipeline


def _wrap_loaders(pipeline: Compose) -> None:
    for index, transform in enumerate(pipeline.transforms):
        if isinstance(transform, (LoadImageFromFile, LoadAnnotations)):
            pipeline.transforms[index] = _RaiseUnreadable(transform)
        for views in getattr(transform, 'subroutines', ()):  # of test-time augmentation
            _wrap_loaders(views)


class _RaiseUnreadable:
    def __init__(self, load: Callable[[dict], dict]) -> None:
        self.load = load

    def __call__(self, results: dict) -> dict:
        try:
            return _load(self.load, results)
        except _UnreadableError as error:
            path, fault = error.args
            raise DataError(
                f'{path} {fault}: repair it, or remove it from the annotations. Leaving it out '
                'would change the score.'
            ) from error


class _UnreadableError(Exception):
    """Path of a file, and what is wrong with it."""


def _load(load: Callable[[dict], dict], results: dict) -> dict:
    """Load a file of a sample, and compare a label map with its image.

    Raises:
        _UnreadableError: If the file cannot be read.
        DataError: If the label map has another shape, or values that mmseg misreads.
    """
    is_image = isinstance(load, LoadImageFromFile)
    path = None
    if is_image or getattr(load, 'with_seg', False):
        path = _local(results.get('img_path' if is_image else 'seg_map_path'))
    if path and (fault := file_fault(path)):
        raise _UnreadableError(path, fault)
    try:
        loaded = load(results)
    except Exception as error:
        for key in ('img_path', 'seg_map_path'):
            file = _local(results.get(key))
            if file and (fault := image_fault(file)):
                raise _UnreadableError(file, fault) from error
        raise  # the files are readable
    if path and not is_image and 'gt_seg_map' in loaded:
        fault = shape_fault(loaded['gt_seg_map'].shape, loaded.get('ori_shape'))
        # Loaders of other names may convert other values.
        if not fault and type(load).__name__ == 'LoadAnnotations':
            fault = value_fault(path)
        if fault:
            raise DataError(
                f'{path} {fault}: correct this label map. List all such files with python '
                'tools/check_dataset.py CONFIG.'
            )
    return loaded


def _local(path: Any) -> str | None:
    """A path on this machine, or None: other storages have other errors."""
    is_local = isinstance(path, (str, os.PathLike)) and not is_url(path)
    return str(path) if is_local else None
