"""Images in one folder per class, the layout of ImageNet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmfocalnet.errors import ConfigError, DataError
from mmfocalnet.registry import register, type_name

SUFFIXES = ('.jpeg', '.jpg', '.png', '.bmp', '.webp', '.tif', '.tiff')
"""Suffixes of images, in lower or upper case."""


@register(DATASETS)
class ImageFolder(BaseDataset):
    """Images in folders with the names of their classes: ``ROOT/CLASS/**/*.JPEG``.

    The label of a class is the index of its folder in sorted order, or its index in
    ``metainfo['classes']`` if given.

    Args:
        data_root: Root folder of the dataset, such as ``'data/imagenet'``. Defaults to ``''``.
        data_prefix: ``dict(img=...)``, the folder of the split within ``data_root``.
        metainfo: ``dict(classes=...)``, to select classes or change their order. Defaults to
            None: all folders.
        kwargs: Other arguments of MMEngine's ``BaseDataset``: ``pipeline``, ``test_mode``, ...

    Raises:
        ConfigError: If the folder is missing.
        DataError: If it has no classes, a class is missing, or one has no images.
    """

    METAINFO: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self,
        data_root: str = '',
        data_prefix: dict | None = None,
        metainfo: dict | None = None,
        **kwargs: Any,
    ) -> None:
        prefix = data_prefix or dict(img='')
        metainfo = {'classes': list_classes(_folder(data_root, prefix)), **(metainfo or {})}
        super().__init__(
            data_root=data_root, data_prefix=prefix, metainfo=metainfo, ann_file='', **kwargs
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images by class, each with ``img_path`` and ``gt_label``."""
        root = Path(self.data_prefix['img'])
        data = []
        for label, name in enumerate(self.metainfo['classes']):
            if not (root / name).is_dir():
                raise DataError(
                    f'{root} has no folder {name!r}, a class of metainfo: add it, or correct '
                    'metainfo=dict(classes=(...)) of the dataset.'
                )
            paths = list(_images(root / name))
            if not paths:
                raise DataError(
                    f'{root / name} has no images ({", ".join(SUFFIXES)}): copy the images of '
                    'this class there, or remove the folder from every split.'
                )
            data += [{'img_path': path, 'gt_label': label} for path in paths]
        return data


def list_classes(folder: Path) -> list[str]:
    """List the classes of a split, in the order of their labels.

    Args:
        folder: Folder of the split, with one folder per class.

    Raises:
        ConfigError: If it is missing.
        DataError: If it has no folders.
    """
    if not folder.is_dir():
        raise ConfigError(
            f'{folder} is missing: copy or link the images there, in one folder per class, or '
            'change data_root of the dataset.'
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    classes = [name for name in classes if not name.startswith('.')]
    if not classes:
        raise DataError(
            f'{folder} has no folders, expected one per class with its images. Sort the '
            'validation images of ImageNet into such folders first.'
        )
    return classes


def check_image_folders(datasets: Sequence[dict], model: dict) -> None:
    """Compare the classes of the splits with one another and with the model.

    Args:
        datasets: Configs of datasets; all types except ``ImageFolder`` pass.
        model: Config of the model.

    Raises:
        ConfigError: If a folder is missing, or the model has another number of classes.
        DataError: If a folder has no classes, or two splits have different ones.
    """
    first = None
    for dataset in datasets:
        if type_name(dataset) != 'ImageFolder':
            continue
        folder = _folder(dataset.get('data_root'), dataset.get('data_prefix'))
        classes = (dataset.get('metainfo') or {}).get('classes') or list_classes(folder)
        if first and list(classes) != list(first[1]):
            raise DataError(_difference(*first, folder, classes))
        first = first or (folder, classes)
        number = model.get('num_classes')
        if isinstance(number, int) and number != len(classes):
            raise ConfigError(
                f'model.num_classes is {number}, but {folder} has {len(classes)} classes: set it '
                f'to {len(classes)}, or correct the folders.'
            )


def _difference(folder: Path, classes: list[str], other: Path, others: list[str]) -> str:
    faults = [
        f'{len(names)} only in {place}, such as {min(names)!r}'
        for names, place in (
            (set(classes) - set(others), folder),
            (set(others) - set(classes), other),
        )
        if names
    ]
    return (
        f'{folder} and {other} have different classes '
        f'({"; ".join(faults) or "the order differs"}), which would change the meaning of labels: '
        'correct the folders.'
    )


def _folder(data_root: str | None, data_prefix: dict | None) -> Path:
    return Path(data_root or '', (data_prefix or {}).get('img') or '')


def _images(folder: Path) -> Iterator[str]:
    for path, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                yield os.path.join(path, name)
