"""Annotation files in COCO's format and its panoptic format: reading, checks that both share."""

from __future__ import annotations

import codecs
import gc
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from mmfocalnet.datasets.category_names import class_names, compare_categories, quote_names
from mmfocalnet.datasets.dataset_configs import join_root, loads_as_coco
from mmfocalnet.datasets.image_files import ImageInfo
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings
from mmfocalnet.datasets.inspection.masks import VALID_POLYGONS, are_valid_polygons
from mmfocalnet.errors import DataError

NUMBER = (int, float)
ID = (int, float, str)
_NUMBERS = frozenset(NUMBER)
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
# The keys that mmdet reads; others may be repeated.
_READ = {
    *('images', 'annotations', 'categories', 'id', 'file_name', 'height', 'width', 'image_id'),
    *('category_id', 'area', 'bbox', 'iscrowd', 'ignore', 'segmentation', 'size', 'counts'),
    *('segments_info', 'name', 'isthing'),
}
# Maximum of NumPy's int64, by which pycocotools sorts ids.
_MAX_INTEGER = 2**63
# Maximum number of pixels that OpenCV reads; pycocotools counts them in 32 bits.
_MAX_PIXELS = 2**30
# Above it, the float32 coordinates of mmdet's boxes are less exact than a pixel.
_MAX_COORDINATE = 2**24
# mmdet samples the masks of larger boxes at so many points that it takes minutes.
_MAX_BOX_RATIO = 10
# Boxes of COCO extend beyond the image by a rounding error, in pixels.
_ROUNDING = 1.0


@dataclass(frozen=True)
class ImageRecord:
    """An image in an annotation file."""

    id: Any
    file_name: str
    path: str
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.path} (image {self.id})'


@dataclass
class Place:
    """The place of a record in the file. Its text is built only for findings.

    Attributes:
        list_name: Path of the file and name of the list.
        index: Index in the list.
        record: The record.
        image: Its image, if known.
    """

    list_name: str
    index: int
    record: Any
    image: ImageRecord | None = None

    def __str__(self) -> str:
        id_ = self.record.get('id') if isinstance(self.record, dict) else None
        with_id = '' if id_ is None else f' (id {short(id_)})'
        image = '' if self.image is None else f' in {self.image}'
        return f'{self.list_name}[{self.index}]{with_id}{image}'


class AnnotationFile:
    """An annotation file; its images and categories are checked when it is read.

    Args:
        dataset: Config of a dataset of mmdet.
        unit: Unit of `ClassCounts`.
        evaluated: Whether metrics compare predictions with it.

    Attributes:
        annotations: The annotations as in the file.
        category_records: The categories as in the file.
        images: Images by id.
        categories: Names of the categories by id.
        classes: Index of a class by the id of its category.
        counts: How often each class is labelled.
        findings: Errors and warnings.

    Raises:
        ConfigError: If the config's classes are not strings.
        DataError: If the file is not valid JSON or not in COCO's format.
    """

    def __init__(self, dataset: dict, unit: str, evaluated: bool) -> None:
        self.path = join_root(dataset, dataset.get('ann_file'))
        self.evaluated = evaluated
        self.findings = Findings()
        self.counts = ClassCounts(class_names(dataset), unit)
        self._loads_as_coco = loads_as_coco(dataset)
        is_test = evaluated or dataset.get('test_mode')
        self._filter = {} if is_test else dataset.get('filter_cfg') or {}
        self._folder = join_root(dataset, (dataset.get('data_prefix') or {}).get('img') or '')
        content = _read(self.path, self.findings)
        # Test sets without public annotations, as COCO's, lack this list.
        self._hidden = bool(is_test) and 'annotations' not in content
        self.annotations = content.get('annotations', [])
        self.category_records = content['categories']
        self.categories = dict(self._read_categories())
        self.images = {image.id: image for image in self._read_images(content['images'])}
        for name, ids in (('images', self.images), ('categories', self.categories)):
            if evaluated and len({isinstance(id_, str) for id_ in ids}) == 2:
                self.findings.add(kinds.IDS, f'{self.path}: {name} mix numbers and strings as id')
        indices = {name: index for index, name in enumerate(self.counts.names)}
        self.classes = {
            id_: indices[name] for id_, name in self.categories.items() if name in indices
        }
        self._counted: set[tuple[int, Any]] = set()

    def count(self, category: Any, image: Any) -> None:
        """Count an annotation, by the ids of its category and image."""
        index = self.classes.get(category)
        if index is None:
            return
        self.counts.numbers[index] += 1
        if (index, image) not in self._counted:
            self._counted.add((index, image))
            self.counts.images[index] += 1

    def complete_records(
        self, records: Sequence[Any], keys: dict[str, tuple], name: str
    ) -> Iterator[tuple[Place, dict]]:
        """Yield records that have all keys, with their places; add the others to the findings."""
        name = f'{self.path}: {name}'
        for index, record in enumerate(records):
            fault = _field_fault(record, keys)
            if fault:
                self.findings.add(kinds.INCOMPLETE, f'{Place(name, index, record)} {fault}')
            else:
                yield Place(name, index, record), record

    def check_flags(self, place: Place, record: dict) -> None:
        """Check ``iscrowd`` and ``ignore``."""
        for key in ('iscrowd', 'ignore'):
            # True and False are equal to 1 and 0; None is mmdet's default of 0.
            if record.get(key) not in (0, 1, None):
                self.findings.add(kinds.FLAG, f'{place} has {key}={short(record[key])}')
        if self.evaluated and record.get('iscrowd') is None:
            self.findings.add(kinds.NO_CROWD, str(place))

    def check_box(self, place: Place, record: dict) -> bool:
        """Check a box, x, y, width and height in pixels; True if mmdet keeps it."""
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
        if max(width, height) > _MAX_BOX_RATIO * max(image.width, image.height):
            self.findings.add(kinds.BOX_SIZE, f'{place}: {box}')
        elif over > _ROUNDING:
            self.findings.add(kinds.BOX_OVER_BORDER, f'{place}: {box}, by {over:g} pixels')
        return True

    def add_unknown_image(self, place: Place, record: dict) -> None:
        """Add an annotation of an image that the file does not list."""
        self.findings.add(kinds.UNKNOWN_IMAGE, f'{place} has image_id {short(record["image_id"])}')

    def add_image(self, image: ImageRecord, info: ImageInfo) -> None:
        """Compare the file of an image with its record."""
        self.findings.add_image(str(image), info)
        if info.size and info.size != (image.height, image.width):
            height, width = info.size
            rotated = (
                ' (after its EXIF rotation)' if info.size == (image.width, image.height) else ''
            )
            self.findings.add(
                kinds.IMAGE_SIZE,
                f'{image} is {width}x{height}{rotated}, the annotations have '
                f'{image.width}x{image.height}',
            )

    def add_unused(self, annotated: set, kept: set) -> None:
        """Add images without annotations, classes without labels, categories without a class.

        Args:
            annotated: Ids of images with annotations.
            kept: Ids of images with annotations that training and evaluation use.
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
        """Check that filter_cfg keeps images, and that there are annotations to evaluate."""
        if not self.images:
            self.findings.add(kinds.NO_IMAGES, self.path)
        elif not self._uses_image(kept) and not self._hidden:
            text = f'{len(self.images)} images, {len(kept)} with "annotations" of the classes'
            if self._filter:
                text += f', filter_cfg={dict(self._filter)}'
            # The usual cause is ids of different types, such as 1 and "1".
            for kind in (kinds.UNKNOWN_IMAGE, kinds.SKIPPED_CATEGORY):
                text += ''.join(f'; {unknown}' for unknown in self.findings.shown(kind)[:1])
            self.findings.add(kinds.NO_SAMPLES, f'{self.path}: {text}')

    def _uses_image(self, kept: set) -> bool:
        if self.evaluated:
            return bool(kept)
        ids = kept if self._filter.get('filter_empty_gt') else self.images
        size = self._filter.get('min_size', 0)
        return any(min(self.images[id_].height, self.images[id_].width) >= size for id_ in ids)

    def _read_categories(self) -> Iterator[tuple[Any, str]]:
        seen, names = set(), []
        for _, record in self.complete_records(self.category_records, _CATEGORY, 'categories'):
            if record['id'] in seen:
                text = f'{self.path}: category {record["id"]} ("{record["name"]}")'
                self.findings.add(kinds.DUPLICATE_CATEGORY, text)
            seen.add(record['id'])
            names.append(record['name'])
            yield record['id'], record['name']
        # Objects365 and LVIS number their categories in other ways.
        classes = self.counts.names if self._loads_as_coco else []
        if fault := compare_categories(names, classes):
            self.findings.add(
                kinds.CLASSES,
                f'{self.path} has the categories {quote_names(names)}, but metainfo of the config '
                f'has {quote_names(classes)} ({fault}): set metainfo=dict(classes=(...)) of the '
                'datasets and num_classes of the heads to those of the file, in its order.',
            )

    def _read_images(self, records: list) -> Iterator[ImageRecord]:
        seen: set = set()
        ids: dict[str, Any] = {}
        for place, record in self.complete_records(records, _IMAGE, 'images'):
            path = os.path.join(self._folder, record['file_name'])
            height, width = record['height'], record['width']
            image = ImageRecord(record['id'], record['file_name'], path, height, width)
            if height <= 0 or width <= 0 or height * width > _MAX_PIXELS:
                size = f'width={short(width)} and height={short(height)}'
                self.findings.add(kinds.IMAGE_RECORD, f'{place} has {size}')
                continue
            if image.id in seen:
                self.findings.add(kinds.DUPLICATE_IMAGE, f'{self.path}: {image}')
            elif path in ids:
                self.findings.add(kinds.SAME_FILE, f'{image} and image {ids[path]}')
            seen.add(image.id)
            ids.setdefault(path, image.id)
            yield image


def _is_box(box: Any) -> bool:
    try:
        return (
            type(box) is list
            and len(box) == 4
            and _NUMBERS.issuperset(map(type, box))
            and math.hypot(*box) <= _MAX_COORDINATE
        )
    except OverflowError:  # an integer too large for a float
        return False


def _field_fault(record: Any, keys: dict[str, tuple]) -> str | None:
    """What is wrong with the fields of a record; inlined for speed, as there may be a million."""
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
            # Some programs write integers with a decimal point.
            fits = fits and (value.is_integer() if types is ID else math.isfinite(value))
        if not fits:
            return f'has {key}={short(value)}, expected {_EXPECTED[types]}'
    return None


def _read(path: str, findings: Findings) -> dict[str, list]:
    """Read a file; duplicate keys become findings.

    Valid polygons, most of a file, are replaced by `VALID_POLYGONS` while parsing: this saves time
    and two thirds of the memory.
    """

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            _add_duplicates(path, pairs, record, findings)
        if are_valid_polygons(record.get('segmentation')):
            record['segmentation'] = VALID_POLYGONS
        return record

    text = _read_text(path)
    was_enabled = gc.isenabled()
    gc.disable()  # it would scan millions of objects again and again
    try:
        content = json.loads(text, object_pairs_hook=make)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{path} is not valid JSON ({error}), expected annotations in COCO format: write or '
            'download the file again.'
        ) from error
    finally:
        if was_enabled:
            gc.enable()
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part, default), list)
        for part, default in (('images', None), ('categories', None), ('annotations', []))
    ):
        raise DataError(
            f'{path} is not in COCO format, expected an object with the lists "images", '
            '"annotations" and "categories".'
        )
    return content


def _read_text(path: str) -> str:
    if not os.path.isfile(path):  # reading a FIFO or a device would not end
        raise DataError(f'{path} is not a regular file, expected annotations in COCO format.')
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f'{path} cannot be opened ({error.strerror}): make it readable.') from error
    # UTF-16 and UTF-32 have zeros among the first bytes, with or without BOM.
    if not content.startswith(codecs.BOM_UTF8) and b'\0' not in content[:4]:
        with suppress(UnicodeDecodeError):
            return content.decode()
    raise DataError(f'{path} is not encoded in UTF-8 without BOM: save it in that encoding.')


def _add_duplicates(path: str, pairs: list, record: dict, findings: Findings) -> None:
    keys = {key for key, value in pairs if key in _READ and value != record[key]}
    owner = f'id {short(record["id"])}' if 'id' in record else f'keys {quote_names(list(record))}'
    for key in sorted(keys):
        findings.add(kinds.DUPLICATE_KEY, f'{path}: "{key}" of the object with {owner}')
