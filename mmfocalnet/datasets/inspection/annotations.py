"""Annotation files in COCO's format, boxes and masks as well as panoptic: reading and records."""

from __future__ import annotations

import codecs
import gc
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfocalnet.datasets.classes import find_classes, join_root, loads_as_coco, some
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings, short
from mmfocalnet.datasets.inspection.masks import SOUND, are_sound_polygons
from mmfocalnet.errors import DataError

NUMBER = (int, float)
_NUMBERS = frozenset(NUMBER)
ID = (int, float, str)
_EXPECTED = {
    NUMBER: 'a finite number',
    ID: 'an integer or a string',
    (str,): 'a string',
    (list,): 'a list',
    (int,): 'an integer',
    (int, bool): '0 or 1',
}
_IMAGE = {'id': ID, 'file_name': (str,), 'height': NUMBER, 'width': NUMBER}
_CATEGORY = {'id': ID, 'name': (str,)}
# What mmdet reads; a key that it does not read may occur twice.
_READ = {
    *('images', 'annotations', 'categories', 'id', 'file_name', 'height', 'width', 'image_id'),
    *('category_id', 'area', 'bbox', 'iscrowd', 'ignore', 'segmentation', 'size', 'counts'),
    *('segments_info', 'name', 'isthing'),
}
# NumPy, by which pycocotools sorts ids, has no larger integers.
_MAX_INTEGER = 2**63
# OpenCV reads no larger images, and pycocotools counts their pixels in 32 bits.
_MAX_PIXELS = 2**30
# Larger coordinates are no longer exact to a pixel in the float32 of mmdet's boxes.
_MAX_COORDINATE = 2**24
# mmdet samples the masks of larger boxes in so many places that it takes minutes.
_MAX_TIMES = 10
# Boxes of COCO reach over the border by a rounding error.
_ROUNDING = 1.0


@dataclass(frozen=True)
class Photograph:
    """An image as the annotations describe it."""

    id: Any
    file_name: str
    path: str
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.path} (image {self.id})'


@dataclass
class Place:
    """Where a record stands; its text is made for findings only.

    Attributes:
        list: Path of the file and name of the list.
        number: Index in the list.
        record: The record.
        image: Its image, if it is known.
    """

    list: str
    number: int
    record: Any
    image: Photograph | None = None

    def __str__(self) -> str:
        known = self.record.get('id') if isinstance(self.record, dict) else None
        id_ = '' if known is None else f' (id {short(known)})'
        image = '' if self.image is None else f' in {self.image}'
        return f'{self.list}[{self.number}]{id_}{image}'


class AnnotationFile:
    """An annotation file; faults of its images and categories are found on reading.

    Args:
        dataset: Config of a dataset of mmdet.
        unit: What its annotations are, such as ``'objects'``.
        evaluated: Whether predictions are compared with it.

    Attributes:
        path: Path of the file.
        evaluated: As given.
        annotations: Its annotations as they stand in the file.
        findings: What is wrong.
        images: Images by id.
        categories: Names of the categories by id.
        category_records: The categories as they stand in the file.
        classes: Place of a class by its category's id.
        counts: How often each class is labelled.

    Raises:
        ConfigError: If the config's classes are not strings.
        DataError: If it is no valid JSON or not in COCO's format.
    """

    def __init__(self, dataset: dict, unit: str, evaluated: bool) -> None:
        self.path = join_root(dataset, dataset.get('ann_file'))
        self.evaluated = evaluated
        self.findings = Findings()
        self.counts = ClassCounts(find_classes(dataset), unit)
        self._loads_as_coco = loads_as_coco(dataset)
        is_test = evaluated or dataset.get('test_mode')
        self._filter = {} if is_test else dataset.get('filter_cfg') or {}
        self._folder = join_root(dataset, (dataset.get('data_prefix') or {}).get('img') or '')
        content = _read(self.path, self.findings)
        # Test sets whose annotations are not public, as COCO's, have no such list.
        self._hidden = bool(is_test) and 'annotations' not in content
        self.annotations = content.get('annotations', [])
        self.category_records = content['categories']
        self.categories = dict(self._read_categories())
        self.images = {image.id: image for image in self._read_images(content['images'])}
        for what, ids in (('images', self.images), ('categories', self.categories)):
            if evaluated and len({isinstance(id_, str) for id_ in ids}) == 2:
                place = f'{self.path}: {what}'
                self.findings.add(kinds.IDS, f'{place} have strings as id as well as numbers')
        places = {name: place for place, name in enumerate(self.counts.names)}
        self.classes = {
            id_: places[name] for id_, name in self.categories.items() if name in places
        }
        self._seen: set[tuple[int, Any]] = set()

    def count(self, category: Any, image: Any) -> None:
        """Count a label."""
        place = self.classes.get(category)
        if place is None:
            return
        self.counts.numbers[place] += 1
        if (place, image) not in self._seen:
            self._seen.add((place, image))
            self.counts.images[place] += 1

    def complete(
        self, records: Sequence[Any], keys: dict[str, tuple], what: str
    ) -> Iterator[tuple[Place, dict]]:
        """The records that have some keys, with their places; others become findings."""
        what = f'{self.path}: {what}'
        for number, record in enumerate(records):
            fault = _lacking(record, keys)
            if fault:
                self.findings.add(kinds.INCOMPLETE, f'{Place(what, number, record)} {fault}')
            else:
                yield Place(what, number, record), record

    def check_flags(self, place: Place, record: dict) -> None:
        """Check what marks crowds and objects to ignore."""
        for key in ('iscrowd', 'ignore'):
            # Of what JSON knows, 0, 1, false and true; an absent one is mmdet's 0.
            if record.get(key) not in (0, 1, None):
                self.findings.add(kinds.FLAG, f'{place} has {key}={short(record[key])}')
        if self.evaluated and record.get('iscrowd') is None:
            self.findings.add(kinds.NO_CROWD, str(place))

    def check_box(self, place: Place, record: dict) -> bool:
        """Check an annotation's box, x, y, width and height in pixels; True if mmdet keeps it."""
        box, image = record.get('bbox'), place.image
        if not _is_box(box):
            self.findings.add(kinds.BOX_FORMAT, f'{place}: {short(box)}')
            return False
        x, y, width, height = box
        over = max(-x, -y, x + width - image.width, y + height - image.height)
        if width < 1 or height < 1 or record['area'] <= 0:
            self.findings.add(kinds.BOX_EMPTY, f'{place}: {box}, area {short(record["area"])}')
            return False
        if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
            self.findings.add(kinds.BOX_OUTSIDE, f'{place}: {box}')
            return False
        if max(width, height) > _MAX_TIMES * max(image.width, image.height):
            self.findings.add(kinds.BOX_SIZE, f'{place}: {box}')
        elif over > _ROUNDING:
            self.findings.add(kinds.BOX_OVER_BORDER, f'{place}: {box}, by {over:g} pixels')
        return True

    def add_unused(self, annotated: set, kept: set) -> None:
        """Find images without annotations, classes without labels, categories without a class.

        Args:
            annotated: Ids of images with annotations.
            kept: Ids of images with something that training and evaluation use.
        """
        for id_, image in self.images.items():
            if id_ not in annotated and not self._hidden:
                self.findings.add(kinds.NO_ANNOTATIONS, str(image))
        for name, number in zip(self.counts.names, self.counts.numbers, strict=True):
            if not number and not self._hidden:
                self.findings.add(kinds.UNUSED_CLASS, f'{self.path}: "{name}"')
        for id_, name in self.categories.items():
            if id_ not in self.classes:
                self.findings.add(kinds.UNUSED_CATEGORY, f'{self.path}: "{name}" (id {id_})')
        self._check_samples(kept)

    def _check_samples(self, kept: set) -> None:
        """Refuse a set of which filter_cfg leaves nothing, or without anything to evaluate."""
        if not self.images:
            self.findings.add(kinds.NO_IMAGES, self.path)
        elif not self._uses_image(kept) and not self._hidden:
            what = f'{len(self.images)} images, {len(kept)} with "annotations" of the classes'
            if self._filter:
                what += f', filter_cfg={dict(self._filter)}'
            # Most often ids that do not agree, as 1 and "1".
            for kind in (kinds.UNKNOWN_IMAGE, kinds.SKIPPED_CATEGORY):
                what += ''.join(f'; {unknown}' for unknown in self.findings.shown(kind)[:1])
            self.findings.add(kinds.NO_SAMPLES, f'{self.path}: {what}')

    def _uses_image(self, kept: set) -> bool:
        if self.evaluated:
            return bool(kept)
        ids = kept if self._filter.get('filter_empty_gt') else self.images
        size = self._filter.get('min_size', 0)
        return any(min(self.images[id_].height, self.images[id_].width) >= size for id_ in ids)

    def _read_categories(self) -> Iterator[tuple[Any, str]]:
        seen, names = set(), []
        for _, record in self.complete(self.category_records, _CATEGORY, 'categories'):
            if record['id'] in seen:
                what = f'{self.path}: category {record["id"]} ("{record["name"]}")'
                self.findings.add(kinds.DUPLICATE_CATEGORY, what)
            seen.add(record['id'])
            names.append(record['name'])
            yield record['id'], record['name']
        self._check_fit(names)

    def _check_fit(self, names: list[str]) -> None:
        """mmdet drops classes that the file lacks, and numbers the others in the file's order."""
        # Objects365 and LVIS number their categories in other ways.
        classes = self.counts.names if self._loads_as_coco else []
        known = set(classes)
        if [name for name in names if name in known] == list(classes):
            return
        missing = [name for name in classes if name not in names]
        twice = [name for name, count in Counter(names).items() if count > 1]
        fault = 'the order differs'
        if missing:
            alike = {_alike(name): name for name in names}
            near = [f'"{alike[n]}"' for n in map(_alike, missing) if n in alike]
            other = f'; {", ".join(near[:4])} differs in case or spaces' if near else ''
            fault = f'the file lacks {some(missing)}{other}'
        elif twice:
            fault = f'the file has {some(twice)} more than once'
        self.findings.add(
            kinds.CLASSES,
            f"{self.path} has the categories {some(names)}, but the config's metainfo names "
            f'{some(classes)} ({fault}): set metainfo=dict(classes=(...)) of the datasets and '
            "num_classes of the heads to the file's, in its order.",
        )

    def _read_images(self, records: list) -> Iterator[Photograph]:
        seen: set = set()
        names: dict[str, Any] = {}
        for place, record in self.complete(records, _IMAGE, 'images'):
            path = os.path.join(self._folder, record['file_name'])
            height, width = record['height'], record['width']
            image = Photograph(record['id'], record['file_name'], path, height, width)
            if height <= 0 or width <= 0 or height * width > _MAX_PIXELS:
                size = f'width={short(width)} and height={short(height)}'
                self.findings.add(kinds.IMAGE_RECORD, f'{place} has {size}')
                continue
            if image.id in seen:
                self.findings.add(kinds.DUPLICATE_IMAGE, f'{self.path}: {image}')
            elif path in names:
                self.findings.add(kinds.SAME_FILE, f'{image} and image {names[path]}')
            seen.add(image.id)
            names.setdefault(path, image.id)
            yield image


def _is_box(box: Any) -> bool:
    try:
        return (
            type(box) is list
            and len(box) == 4
            and _NUMBERS.issuperset(map(type, box))
            and math.hypot(*box) <= _MAX_COORDINATE
        )
    except OverflowError:  # of an integer that no float can hold
        return False


def _alike(name: str) -> str:
    return ''.join(name.split()).casefold()


def _lacking(record: Any, keys: dict[str, tuple]) -> str | None:
    """What is wrong with the fields of a record; without calls, for a million of them."""
    if type(record) is not dict:
        return f'is {short(record)}, expected an object'
    for key, types in keys.items():
        value = record.get(key)
        if value is None:
            return f'lacks {key}'
        fits = type(value) in types
        if type(value) is int:
            fits = fits and -_MAX_INTEGER < value < _MAX_INTEGER
        elif type(value) is float:
            # Some programs write integers with a decimal point, which is as good.
            fits = fits and (value.is_integer() if types is ID else math.isfinite(value))
        if not fits:
            return f'has {key}={short(value)}, expected {_EXPECTED[types]}'
    return None


def _read(path: str, findings: Findings) -> dict[str, list]:
    """Read a file; keys that occur twice become findings.

    Sound polygons are replaced by `SOUND` as they come, for they are most of a file: without
    them reading takes less time, and a third of the memory.
    """

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            _add_twice(path, pairs, record, findings)
        if are_sound_polygons(record.get('segmentation')):
            record['segmentation'] = SOUND
        return record

    text = _read_text(path)
    collects = gc.isenabled()
    gc.disable()  # it would go through millions of objects again and again
    try:
        content = json.loads(text, object_pairs_hook=make)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{path} is no valid JSON ({error}): annotations in COCO format were expected; get '
            'or write the file again.'
        ) from error
    finally:
        if collects:
            gc.enable()
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part, default), list)
        for part, default in (('images', None), ('categories', None), ('annotations', []))
    ):
        raise DataError(
            f'{path} is not in COCO format: one object with the lists "images", "annotations" '
            'and "categories" was expected.'
        )
    return content


def _read_text(path: str) -> str:
    # A FIFO or a device would never end.
    if not os.path.isfile(path):
        raise DataError(f'{path} is not a regular file: expected annotations in COCO format.')
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be opened ({error.strerror}): correct it.') from error
    # UTF-16 and UTF-32 have zeros among the first letters, with or without BOM.
    if not content.startswith(codecs.BOM_UTF8) and b'\0' not in content[:4]:
        with suppress(UnicodeDecodeError):
            return content.decode()
    raise DataError(f'{path} is in another encoding than UTF-8: save it as UTF-8 without BOM.')


def _add_twice(path: str, pairs: list, record: dict, findings: Findings) -> None:
    keys = {key for key, value in pairs if key in _READ and value != record[key]}
    of = f'id {short(record["id"])}' if 'id' in record else f'the keys {some(list(record))}'
    for key in sorted(keys):
        findings.add(kinds.DUPLICATE_KEY, f'{path}: "{key}" of the object with {of}')
