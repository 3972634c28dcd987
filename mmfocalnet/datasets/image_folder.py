"""Images in one folder per class, as ImageNet is unpacked."""

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
"""What images end with, in lower or upper case."""


@register(DATASETS)
class ImageFolder(BaseDataset):
    """Images in folders that are named for their classes: ``ROOT/CLASS/**/*.JPEG``.

    The label of a class is its place among the folders' names in order, or in
    ``metainfo['classes']`` where that is given.

    Args:
        data_root: Where the set lies, such as ``'data/imagenet'``. Defaults to ``''``.
        data_prefix: ``dict(img=...)``, the folder of the split within ``data_root``.
        metainfo: ``dict(classes=...)``, where not all folders are to be read or another order
            counts. Defaults to None.
        kwargs: What else MMEngine's ``BaseDataset`` takes: ``pipeline``, ``test_mode``, ...

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
        """List the images by class: ``img_path`` and ``gt_label`` of each."""
        root = Path(self.data_prefix['img'])
        data = []
        for label, name in enumerate(self.metainfo['classes']):
            if not (root / name).is_dir():
                raise DataError(
                    f'{root} has no folder {name!r}, which metainfo names as a class: add it, or '
                    'correct metainfo=dict(classes=(...)) of the dataset.'
                )
            paths = list(_images(root / name))
            if not paths:
                raise DataError(
                    f'{root / name} has no images ({", ".join(SUFFIXES)}): unpack those of this '
                    'class there, or remove the folder from every split.'
                )
            data += [{'img_path': path, 'gt_label': label} for path in paths]
        return data


def list_classes(folder: Path) -> list[str]:
    """Name the classes of a split, in the order of their labels.

    Args:
        folder: Folder of the split, with one folder per class.

    Raises:
        ConfigError: If it is missing.
        DataError: If it has no folders.
    """
    if not folder.is_dir():
        raise ConfigError(
            f'{folder} is missing: put or link the images there, in one folder per class, or '
            'change data_root of the dataset.'
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    classes = [name for name in classes if not name.startswith('.')]
    if not classes:
        raise DataError(
            f'{folder} has no folders: one per class was expected, with its images in it; '
            "ImageNet's validation images are to be sorted into such folders first."
        )
    return classes


def check_image_folders(datasets: Sequence[dict], model: dict) -> None:
    """Compare the classes of the splits of a set with one another and with the model.

    Args:
        datasets: Configs of datasets; all but those of type ``ImageFolder`` pass.
        model: Config of the model.

    Raises:
        ConfigError: If a folder is missing, or the model has another number of classes.
        DataError: If a folder has no classes, or two splits have other ones.
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
    only = sorted(set(classes) - set(others))
    more = sorted(set(others) - set(classes))
    faults = [
        f'{len(names)} in {place} alone, such as {names[0]!r}'
        for names, place in ((only, folder), (more, other))
        if names
    ]
    return (
        f'{folder} and {other} have different classes '
        f'({"; ".join(faults) or "in another order"}): labels would not mean the same; correct '
        'the folders.'
    )


def _folder(data_root: str | None, data_prefix: dict | None) -> Path:
    return Path(data_root or '', (data_prefix or {}).get('img') or '')


def _images(folder: Path) -> Iterator[str]:
    for path, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                yield os.path.join(path, name)
