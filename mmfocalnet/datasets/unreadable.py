"""Files of a dataset that cannot be read: left out of training, named in validation and test.

MMEngine's datasets take another sample where a pipeline returns None while training. What is
added here is to return it, to count and name such files once, and to stop where they are many.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from mmcv.transforms import BaseTransform, LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, TRANSFORMS
from torch.utils.data import Dataset, get_worker_info

from mmfocalnet.datasets.image_faults import (
    file_fault,
    picture_fault,
    shape_fault,
    stored_value_fault,
)
from mmfocalnet.errors import DataError
from mmfocalnet.files import is_url
from mmfocalnet.registry import register
from mmfocalnet.text import escape

if TYPE_CHECKING:
    from mmengine.runner import Runner

MAX_UNREADABLE = 0.01
"""Share of a training set's files beyond which a training stops."""

_SLOTS = 2**16
# Iterations between two exchanges of what the processes of a launch have found.
_EXCHANGE = 100


@register(TRANSFORMS)
class SkipUnreadable(BaseTransform):
    """Load with another transform; where the file is missing or damaged, return None.

    Files are counted over all workers of the process. Each is named once in the log.

    Args:
        load: Config of the transform that reads ``img_path`` or ``seg_map_path``.
    """

    def __init__(self, load: dict) -> None:
        self.load = TRANSFORMS.build(load)
        self.total: int | None = None
        """Samples of the dataset; workers find it themselves."""
        # Marks files by a hash of their path. Shared, as each worker has a copy of this object.
        self._found = torch.zeros(_SLOTS, dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """Number of files found unreadable so far."""
        return int(self._found.count_nonzero())

    def exchange(self) -> None:
        """Learn what the other processes of a launch have found; all of them must call it."""
        found = self._found.clone()
        all_reduce(found, op='max')
        self._found[found.bool()] = 1  # workers may have marked others meanwhile

    def transform(self, results: dict) -> dict | None:
        """Load, or return None where the file cannot be read.

        Raises:
            DataError: If that is so with more than one percent of the dataset's files (and
                with more than one file), or at a label map that mmseg would misread.
        """
        try:
            return _load(self.load, results)
        except _UnreadableError as error:
            path, fault = error.args
        slot = zlib.crc32(path.encode()) % _SLOTS
        if not self._found[slot]:
            self._found[slot] = 1
            # An error, since MMEngine keeps warnings of all ranks but the first to itself.
            text = escape(f'{path} {fault}: left out of training.')
            print_log(text, 'current', logging.ERROR)
            self._stop_if_many(path, fault)
        return None

    def _stop_if_many(self, path: str, fault: str) -> None:
        worker = get_worker_info()
        total = _count_samples(worker.dataset) if worker else self.total
        if total is not None and self.count > max(1, MAX_UNREADABLE * total):
            raise DataError(
                f'{self.count} files of the {total} training samples cannot be read, more than '
                f'{MAX_UNREADABLE:.0%}, the last being {path}, which {fault}: list them with '
                'python tools/check_dataset.py CONFIG and repair them or leave them out.'
            )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(load={self.load})'


@register(HOOKS)
class UnreadableFilesHook(Hook):
    """Keep `SkipUnreadable` informed in training; name an unreadable file in validation and test.

    There a file that is left out would change the score, so the run ends with its name.
    """

    def before_train(self, runner: Runner) -> None:
        """Tell how many samples there are."""
        dataset = runner.train_dataloader.dataset
        for guard in _guards(dataset):
            guard.total = _count_samples(dataset)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Let the processes of a launch count together."""
        if get_world_size() > 1 and self.every_n_train_iters(runner, _EXCHANGE):
            for guard in _guards(runner.train_dataloader.dataset):
                guard.exchange()

    def after_train(self, runner: Runner) -> None:
        """Say how many files were left out."""
        count = sum(guard.count for guard in _guards(runner.train_dataloader.dataset))
        if count:
            runner.logger.warning(
                f'{count} unreadable files were left out of this training; they are named above.'
            )

    def before_val(self, runner: Runner) -> None:
        """Name files of the validation set that cannot be read."""
        name_unreadable(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Name files of the test set that cannot be read."""
        name_unreadable(runner.test_dataloader.dataset)


class _NameUnreadable:
    """Load; an error of an unreadable file becomes one sentence."""

    def __init__(self, load: Callable[[dict], dict]) -> None:
        self.load = load

    def __call__(self, results: dict) -> dict:
        try:
            return _load(self.load, results)
        except _UnreadableError as error:
            path, fault = error.args
            raise DataError(
                f'{path} {fault}: repair it, or remove it from the annotations; a score without '
                'it would be another one.'
            ) from error


def name_unreadable(dataset: Dataset) -> None:
    """Let a dataset raise a `DataError` with the name of a file that it cannot read.

    Args:
        dataset: Of MMEngine; its pipelines are changed.
    """
    for leaf in _leaves(dataset):
        _wrap_loaders(leaf.pipeline)


def _wrap_loaders(pipeline: Compose) -> None:
    for number, transform in enumerate(pipeline.transforms):
        if isinstance(transform, (LoadImageFromFile, LoadAnnotations)):
            pipeline.transforms[number] = _NameUnreadable(transform)
        for views in getattr(transform, 'subroutines', ()):  # of test-time augmentation
            _wrap_loaders(views)


class _UnreadableError(Exception):
    """Path of a file, and what is wrong with it."""


def _load(load: Callable[[dict], dict], results: dict) -> dict:
    """Load a file of a sample, and compare a label map with its image.

    Raises:
        _UnreadableError: If the file cannot be read.
        DataError: If the label map has another shape, or values that mmseg misreads.
    """
    path = _path(load, results)
    if path and (fault := file_fault(path)):
        raise _UnreadableError(path, fault)
    try:
        loaded = load(results)
    except Exception as error:
        path, fault = _unreadable_file(results)
        if path is None:
            raise  # the files are in order: it is something else
        raise _UnreadableError(path, fault) from error
    if path and not isinstance(load, LoadImageFromFile):
        # A loader of the user's may convert other values.
        _check_map(path, loaded, is_plain=type(load).__name__ == 'LoadAnnotations')
    return loaded


def _path(load: Callable[[dict], dict], results: dict) -> str | None:
    """The file that a transform reads, if it is on this machine."""
    is_image = isinstance(load, LoadImageFromFile)
    path = None
    if is_image or getattr(load, 'with_seg', False):
        path = results.get('img_path' if is_image else 'seg_map_path')
    return _local(path)


def _local(path: Any) -> str | None:
    # Other storages than the local one have troubles of their own.
    is_local = isinstance(path, (str, os.PathLike)) and not is_url(path)
    return str(path) if is_local else None


def _check_map(path: str, loaded: dict, is_plain: bool) -> None:
    if 'gt_seg_map' not in loaded:
        return
    fault = shape_fault(loaded['gt_seg_map'].shape, loaded.get('ori_shape'))
    if fault := fault or (stored_value_fault(path) if is_plain else None):
        raise DataError(
            f'{path} {fault}: correct this label map; list all such files with python '
            'tools/check_dataset.py CONFIG.'
        )


def _unreadable_file(results: dict) -> tuple[str | None, str | None]:
    """The file of a sample that cannot be read and what is wrong with it, or nothing."""
    for key in ('img_path', 'seg_map_path'):
        path = _local(results.get(key))
        if path and (fault := picture_fault(path)):
            return path, fault
    return None, None


def _leaves(dataset: Any) -> Iterator[Any]:
    """The datasets with a pipeline inside those that concatenate or repeat others."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        if isinstance(getattr(dataset, 'pipeline', None), Compose):
            yield dataset
        return
    for part in inner:
        yield from _leaves(part)


def _guards(dataset: Dataset) -> Iterator[SkipUnreadable]:
    for leaf in _leaves(dataset):
        for transform in leaf.pipeline.transforms:
            if isinstance(transform, SkipUnreadable):
                yield transform


def _count_samples(dataset: Dataset) -> int:
    return sum(len(leaf) for leaf in _leaves(dataset))
