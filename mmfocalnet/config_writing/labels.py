"""What a folder of images and labels contains: classes, masks, splits and image sizes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmengine
import numpy as np

from mmfocalnet.datasets.image_files import decode_label_map, inspect_image
from mmfocalnet.errors import DataError

SPLITS = dict(
    train=('train', 'training'), val=('val', 'valid', 'validation'), test=('test', 'testing')
)
"""Names of the splits in file names and folders."""

_IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# Annotation files of COCO that are not for detection.
_OTHER_FILES = ('panoptic', 'captions', 'keypoints', 'image_info')
_SAMPLED_MAPS = 200  # label maps that are read to find their classes


@dataclass
class Split:
    """One split of a dataset; paths are relative to the root.

    Attributes:
        images: Folder of the images.
        ann_file: Annotation file; empty for label maps.
        maps: Folder of the label or panoptic maps; empty for boxes and masks.
        count: Number of images.
    """

    images: str
    ann_file: str = ''
    maps: str = ''
    count: int = 0


@dataclass
class Labels:
    """What a dataset contains.

    Attributes:
        root: Its folder.
        splits: ``train``, ``val`` and perhaps ``test``.
        classes: Names of the classes; of panoptic labels the things first.
        stuff: Number of stuff classes among them.
        masks: Whether objects have masks.
        kind: ``'instances'``, ``'panoptic'`` or ``'semantic'``.
        size: Median width and height of the training images.
        reduce_zero_label: Whether 0 in label maps means "no label".
        suffixes: File suffixes of images and label maps.
    """

    root: Path
    splits: dict[str, Split]
    classes: tuple[str, ...]
    kind: str = 'instances'
    stuff: int = 0
    masks: bool = False
    size: tuple[int, int] = (0, 0)
    reduce_zero_label: bool = False
    suffixes: tuple[str, str] = ('.jpg', '.png')

    @property
    def description(self) -> str:
        """The kind of labels, for people."""
        if self.kind != 'instances':
            return f'{self.kind} maps'
        return 'boxes and masks' if self.masks else 'boxes without masks'


def read_labels(root: Path, kind: str, files: dict[str, str]) -> Labels:
    """Read what a dataset contains.

    Args:
        root: Its folder.
        kind: The labels that the recipe needs: ``'instances'``, ``'panoptic'`` or ``'semantic'``.
        files: Annotation files by split that are not found by their names.

    Raises:
        DataError: If they are not found, or cannot be read.
    """
    if not root.is_dir():
        raise DataError(f'There is no folder {root}: specify the folder of the data.')
    if kind == 'semantic':
        return _read_semantic(root)
    paths = _find_files(root, kind) | {split: _resolve(root, f) for split, f in files.items()}
    for split in ('train', 'val'):
        if split not in paths:
            raise DataError(
                f'{root} has no annotation file of {kind} for {split}: add one whose name contains '
                f'"{split}", or specify it by --{split}. To use part of the training set for '
                'validation, split it, for example with tools/misc/split_coco.py of mmdet.'
            )
    contents = {split: _load(path) for split, path in paths.items()}
    labels = Labels(root, {}, (), kind)
    for split in SPLITS:
        if split in contents:
            labels.splits[split] = _coco_split(root, split, paths[split], contents[split], kind)
    _read_categories(labels, paths['train'], contents['train'])
    return labels


def _resolve(root: Path, file: str) -> Path:
    """A file relative to the current folder or to that of the data."""
    for path in (Path(file), root / file):
        if path.is_file():
            return path
    raise DataError(f'There is no annotation file {file}, also not in {root}.')


def _find_files(root: Path, kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in [*sorted(root.glob('*.json')), *sorted(root.glob('*/*.json'))]:
        split = _split_of(path.stem) or _split_of(path.parent.name)
        others = [name for name in _OTHER_FILES if name in path.stem]
        fits = kind in path.stem or (kind == 'instances' and not others)
        if split and split not in found and fits:
            found[split] = path
    return found


def _split_of(name: str) -> str | None:
    for split, names in SPLITS.items():
        if any(part in name.lower() for part in names):
            return split
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        content = mmengine.load(path)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f'{path} cannot be read as JSON ({error}): correct or remove it.'
        ) from error
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f'{path} has no list "{key}": specify a file in COCO\'s format.')
    return content


def _coco_split(root: Path, split: str, path: Path, content: dict, kind: str) -> Split:
    images = [image for image in content['images'] if isinstance(image, dict)]
    if not images:
        raise DataError(
            f'{path} has no images: export the annotations again, or specify another file with '
            f'--{split}.'
        )
    names = [str(image.get('file_name')) for image in images[:3]]
    stem = path.stem.rpartition('_')[2]
    folders = [root / stem, *(root / 'images' / name for name in (stem, *SPLITS[split]))]
    folders += [*(root / name for name in SPLITS[split]), root / 'images', root, path.parent]
    for folder in folders:
        if names and all((folder / name).is_file() for name in names):
            break
    else:
        raise DataError(
            f'The images of {path}, such as {names[:1]}, are in none of these folders: '
            f'{", ".join(map(str, dict.fromkeys(folders)))}. Move or link them to one.'
        )
    maps = _relative(path.with_suffix(''), root) if kind == 'panoptic' else ''
    if maps and not (root / maps).is_dir():
        raise DataError(f'The folder of panoptic maps {root / maps} is missing.')
    return Split(_relative(folder, root), _relative(path, root), maps, len(content['images']))


def _relative(path: Path, root: Path) -> str:
    path, root = path.absolute(), root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _read_categories(labels: Labels, path: Path, content: dict) -> None:
    categories = content['categories']
    names = [category.get('name') for category in categories if isinstance(category, dict)]
    if not names or len(names) < len(categories) or not all(isinstance(n, str) for n in names):
        raise DataError(f'{path}: "categories" must be a list of dicts with a string "name" each.')
    if labels.kind == 'panoptic':
        things = [c['name'] for c in categories if c.get('isthing', 1)]
        stuff = [c['name'] for c in categories if not c.get('isthing', 1)]
        names, labels.stuff = [*things, *stuff], len(stuff)
    labels.classes = tuple(names)
    objects = [a for a in content['annotations'] if isinstance(a, dict)]
    labels.masks = any(a.get('segmentation') for a in objects)
    sizes = [(i.get('width'), i.get('height')) for i in content['images'] if isinstance(i, dict)]
    sizes = [size for size in sizes if all(isinstance(length, int) for length in size)]
    labels.size = _median(sizes)


def _median(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    if not sizes:
        return (0, 0)
    width, height = (round(statistics.median(lengths)) for lengths in zip(*sizes, strict=True))
    return width, height


def _read_semantic(root: Path) -> Labels:
    splits = dict(_semantic_splits(root))
    for split in ('train', 'val'):
        if split not in splits:
            raise DataError(
                f'{root} has no label maps for {split}: expected images in images/{split} and maps '
                f'of the same names in annotations/{split} (or masks/, labels/, img_dir/ and '
                'ann_dir/).'
            )
    train = splits['train']
    images, maps = (_files(root / folder) for folder in (train.images, train.maps))
    values = set()
    for path in maps[:: max(1, len(maps) // _SAMPLED_MAPS)]:
        content = decode_label_map(path)
        if isinstance(content, str):
            raise DataError(f'{path} {content}.')
        if content.ndim > 2:
            raise DataError(f'{path} has {content.shape[2]} channels, expected one.')
        values.update(np.unique(content).tolist())
    values.discard(255)
    names = _class_names(root)
    if len(values) < 2 or (names and max(values) > len(names)):
        raise DataError(
            f'The label maps in {root / train.maps} have the values {sorted(values)[:9]} (255 is '
            f'ignored), expected the numbers of {len(names) or "at least two"} classes.'
        )
    reduce_zero = max(values, default=0) == len(names) if names else 0 not in values
    if not names:
        names = tuple(f'class{value}' for value in range(reduce_zero, max(values, default=0) + 1))
    sizes = [size[::-1] for path in images[:20] if (size := inspect_image(path).size)]
    _compare_sizes(images[0], maps[0])
    suffixes = (images[0].suffix, maps[0].suffix)
    labels = Labels(root, splits, names, 'semantic', size=_median(sizes), suffixes=suffixes)
    labels.reduce_zero_label = reduce_zero
    return labels


def _compare_sizes(image: Path, label_map: Path) -> None:
    size, labels = inspect_image(image).size, decode_label_map(label_map)
    if size and not isinstance(labels, str) and labels.shape[:2] != size:
        raise DataError(
            f'{label_map} is {labels.shape[1]}x{labels.shape[0]}, and {image} is '
            f'{size[1]}x{size[0]}: each map needs the size of its image.'
        )


def _semantic_splits(root: Path) -> Iterator[tuple[str, Split]]:
    for images, maps in (
        ('images', 'annotations'),
        ('images', 'masks'),
        ('images', 'labels'),
        ('img_dir', 'ann_dir'),
    ):
        for split, names in SPLITS.items():
            for name in names:
                folders = f'{images}/{name}', f'{maps}/{name}'
                if all(_files(root / folder) for folder in folders):
                    yield split, Split(folders[0], '', folders[1], len(_files(root / folders[0])))


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES)


def _class_names(root: Path) -> tuple[str, ...]:
    file = root / 'classes.txt'
    if not file.is_file():
        return ()
    try:
        text = file.read_text(encoding='utf-8-sig')  # editors may write a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f'{file} is not UTF-8 ({error}): save it as UTF-8.') from error
    names = [line.strip() for line in text.strip().splitlines()]
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(f'{file} must have one name per line, each of them once.')
    return tuple(names)
