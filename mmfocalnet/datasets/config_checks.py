"""Checks of a config's data before anything is built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmfocalnet.config import error_context, find_dicts, is_first_process
from mmfocalnet.datasets.classes import check_classes
from mmfocalnet.datasets.image_folder import check_image_folders
from mmfocalnet.datasets.inspection import check_annotations, find_evaluated
from mmfocalnet.datasets.label_maps import check_label_maps
from mmfocalnet.datasets.unreadable import MAX_UNREADABLE
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import is_url


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the data of some splits before anything is built, without opening images.

    In a launch rank 0 reads the annotations for all; the others wait for it where the processes
    join.

    Args:
        cfg: The config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        ConfigError: If an annotation file or image folder is missing, classes are not strings, or
            heads have another number of classes.
        DataError: If an annotation file in COCO's format has errors, or label maps are missing or
            without labels.
    """
    loaders = [cfg.get(f'{split}_dataloader') or {} for split in splits]
    for split in splits:
        check_paths(cfg, f'{split}_dataloader')
        check_paths(cfg, f'{split}_evaluator')
        with _of_split(cfg, split):
            for dataset in _datasets(cfg, split):
                check_classes(dataset, cfg.model)
        _check_topk(cfg, split)
    check_image_folders(list(find_dicts(loaders)), cfg.model)
    if not is_first_process(cfg):
        return
    for split in splits:
        with _of_split(cfg, split):
            datasets, evaluator = list(_datasets(cfg, split)), find_evaluator(cfg, split)
            for dataset in (*datasets, *find_evaluated(datasets, evaluator)):
                check_annotations(dataset, evaluator)
            for dataset in datasets:
                check_label_maps(dataset, MAX_UNREADABLE if split == 'train' else 0.0)


def find_evaluator(cfg: Config, split: str) -> dict | list | None:
    """What evaluates predictions on a split; None for ``'train'``."""
    return None if split == 'train' else cfg.get(f'{split}_evaluator') or {}


@contextmanager
def _of_split(cfg: Config, split: str) -> Iterator[None]:
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with error_context(f'{split}_dataloader', cfg), scope:
        yield


def _datasets(cfg: Config, split: str) -> Iterator[dict]:
    for node in find_dicts(cfg.get(f'{split}_dataloader') or {}):
        if 'type' in node and ('ann_file' in node or 'data_prefix' in node):
            yield node


def check_paths(cfg: Config, part: str) -> None:
    """Look for the files and folders that a part of a config names.

    Args:
        cfg: The config.
        part: Such as ``'train_dataloader'``; the config may lack it.

    Raises:
        ConfigError: If one is missing.
    """
    with error_context(part, cfg):
        paths = list(_data_paths(cfg.get(part) or {}))
    for path in paths:
        if not is_url(path) and not Path(path).exists():
            raise ConfigError(
                f'{path} is missing ({part} of {cfg.filename}): put or link the data there, or '
                'change data_root in a config of yours that inherits this one.'
            )


def _check_topk(cfg: Config, split: str) -> None:
    """Compare a classifier's classes with the k of its metric, which is measured much later."""
    classes = cfg.model.get('num_classes')
    for evaluator in find_dicts(cfg.get(f'{split}_evaluator') or {}):
        topk = evaluator.get('topk')
        if not isinstance(topk, (list, tuple)) or not isinstance(classes, int):
            continue
        if any(isinstance(k, int) and k > classes for k in topk):
            raise ConfigError(
                f'{split}_evaluator of {cfg.filename} has topk={tuple(topk)}, but the model has '
                f'{classes} classes: set smaller numbers there.'
            )


def _data_paths(part: dict | list) -> Iterator[str]:
    for node in find_dicts(part):
        root = node.get('data_root') or ''
        prefixes = node.get('data_prefix') or {}
        if isinstance(prefixes, str):  # as mmpretrain's datasets take it
            prefixes = {'img': prefixes}
        for path in (node.get('ann_file'), node.get('seg_prefix'), *prefixes.values()):
            if isinstance(path, str) and path:
                # Both may be addresses of a storage that MMEngine reads from.
                yield path if is_url(path) else os.path.join(root, path)
