"""Checks of a config's data before anything is built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmfocalnet.config import error_context, find_dicts, is_first_process
from mmfocalnet.datasets.category_names import check_num_classes
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.datasets.image_folder import check_image_folders
from mmfocalnet.datasets.inspection import check_annotations, find_evaluated_datasets
from mmfocalnet.datasets.label_maps import check_label_maps
from mmfocalnet.datasets.skip_unreadable import MAX_UNREADABLE
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import is_url


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check the data of some splits before anything is built, without opening images.

    In a launch only rank 0 reads the annotations. The others wait for it when the process group is
    initialized.

    Args:
        cfg: The config.
        splits: Any of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        ConfigError: If an annotation file or image folder is missing, classes are not strings, or
            heads have another number of classes.
        DataError: If an annotation file in COCO's format has errors, or label maps are missing or
            without labels.
    """
    for split in splits:
        check_paths(cfg, f'{split}_dataloader')
        check_paths(cfg, f'{split}_evaluator')
        with _split_context(cfg, split):
            for dataset in split_datasets(cfg, split):
                check_num_classes(dataset, cfg.model)
        _check_topk(cfg, split)
    datasets = [dataset for split in splits for dataset in split_datasets(cfg, split)]
    check_image_folders(datasets, cfg.model)
    if not is_first_process(cfg):
        return
    for split in splits:
        with _split_context(cfg, split):
            datasets, evaluator = split_datasets(cfg, split), split_evaluator(cfg, split)
            for dataset in (*datasets, *find_evaluated_datasets(datasets, evaluator)):
                check_annotations(dataset, evaluator)
            for dataset in datasets:
                check_label_maps(dataset, MAX_UNREADABLE if split == 'train' else 0.0)


def split_datasets(cfg: Config, split: str) -> list[dict]:
    """Configs of the datasets of a split that read files; empty if the config lacks the split.

    Raises:
        ConfigError: If the split's data loader is malformed.
    """
    part = f'{split}_dataloader'
    with error_context(part, cfg):
        datasets = find_datasets((cfg.get(part) or {}).get('dataset'))
        return [inner for inner in datasets if isinstance(inner, dict) and 'type' in inner]


def split_evaluator(cfg: Config, split: str) -> dict | list | None:
    """Config of the metrics of a split; None for ``'train'``."""
    return None if split == 'train' else cfg.get(f'{split}_evaluator') or {}


@contextmanager
def _split_context(cfg: Config, split: str) -> Iterator[None]:
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with error_context(f'{split}_dataloader', cfg), scope:
        yield


def check_paths(cfg: Config, part: str) -> None:
    """Check that the files and folders in a part of a config exist.

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
                f'{path} is missing ({part} of {cfg.filename}): copy or link the data there, or '
                'set data_root of the datasets and ann_file of the evaluators in a config that '
                'inherits from this one.'
            )


def _check_topk(cfg: Config, split: str) -> None:
    """Compare the number of classes of a classifier with the k of its metric."""
    classes = cfg.model.get('num_classes')
    for evaluator in find_dicts(cfg.get(f'{split}_evaluator') or {}):
        topk = evaluator.get('topk')
        if not isinstance(topk, (list, tuple)) or not isinstance(classes, int):
            continue
        if any(isinstance(k, int) and k > classes for k in topk):
            raise ConfigError(
                f'{split}_evaluator of {cfg.filename} has topk={tuple(topk)}, but the model has '
                f'{classes} classes: set smaller numbers.'
            )


def _data_paths(part: dict | list) -> Iterator[str]:
    for node in find_dicts(part):
        root = node.get('data_root') or ''
        prefixes = node.get('data_prefix') or {}
        if isinstance(prefixes, str):  # as in mmpretrain's datasets
            prefixes = {'img': prefixes}
        for path in (node.get('ann_file'), node.get('seg_prefix'), *prefixes.values()):
            if isinstance(path, str) and path:
                # Both may be URLs of a storage that MMEngine reads from.
                yield path if is_url(path) else os.path.join(root, path)
