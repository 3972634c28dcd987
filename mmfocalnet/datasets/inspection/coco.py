"""Inspection of annotations in COCO's format: boxes and masks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfocalnet.datasets.checks import check_coco, find_classes, join_root
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings, Report
from mmfocalnet.datasets.inspection.progress import look_at_each
from mmfocalnet.datasets.pictures import read_photograph
from mmfocalnet.errors import DataError

# Of each record, what mmdet reads.
_IMAGE = {'id': Hashable, 'file_name': str, 'height': (int, float), 'width': (int, float)}
_OBJECT = {'id': Hashable, 'image_id': Hashable, 'category_id': Hashable, 'area': (int, float)}
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


class CocoFile:
    """An annotation file; what is wrong with its images and categories is found on reading.

    Args:
        dataset: Config of a dataset of mmdet.
        findings: Where to put what is wrong.

    Attributes:
        path: Path of the file.
        images: Images by id.
        categories: Names of the categories by id.
        classes: Place of a class by its category's id.
        counts: How often each class is labelled.

    Raises:
        DataError: If it is no valid JSON or not in COCO's format.
    """

    def __init__(self, dataset: dict, unit: str, findings: Findings) -> None:
        self.path = join_root(dataset, dataset.get('ann_file'))
        self.content = _read(self.path)
        self.findings = findings
        self.counts = ClassCounts(find_classes(dataset), unit)
        self._folder = join_root(dataset, (dataset.get('data_prefix') or {}).get('img') or '')
        self._check_fit(dataset)
        self.categories = dict(self._read_categories())
        self.images = {image.id: image for image in self._read_images()}
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

    def place(self, number: int, record: Any, what: str = 'annotations') -> str:
        """Where a record stands, for people."""
        known = record.get('id') if isinstance(record, dict) else None
        id_ = f' (id {known})' if known is not None else ''
        return f'{self.path}: {what}[{number}]{id_}'

    def complete(self, records: Iterable[Any], keys: dict[str, Any], what: str) -> Iterator[tuple]:
        """The records that have some keys, with their numbers; others become findings."""
        for number, record in enumerate(records):
            lacking = _lacking(record, keys)
            if lacking:
                place = self.place(number, record, what)
                self.findings.add(kinds.INCOMPLETE, f'{place} {lacking}')
            else:
                yield number, record

    def add_unused(self) -> None:
        """Find classes without labels and categories that are no classes."""
        for name, number in zip(self.counts.names, self.counts.numbers, strict=True):
            if not number:
                self.findings.add(kinds.UNUSED_CLASS, f'{self.path}: {name}')
        for id_, name in self.categories.items():
            if id_ not in self.classes:
                self.findings.add(kinds.UNUSED_CATEGORY, f'{self.path}: {name} (id {id_})')

    def add_without(self, annotated: set) -> None:
        """Find images that no annotation names."""
        for id_, image in self.images.items():
            if id_ not in annotated:
                self.findings.add(kinds.NO_ANNOTATIONS, str(image))

    def _check_fit(self, dataset: dict) -> None:
        try:
            check_coco(dataset)
        except DataError as error:
            self.findings.add(kinds.CLASSES, str(error))

    def _read_categories(self) -> Iterator[tuple[Any, str]]:
        keys = {'id': Hashable, 'name': str}
        seen = set()
        for _, record in self.complete(self.content['categories'], keys, 'categories'):
            if record['id'] in seen:
                what = f'{self.path}: category {record["id"]} ({record["name"]})'
                self.findings.add(kinds.DUPLICATE_CATEGORY, what)
            seen.add(record['id'])
            yield record['id'], record['name']

    def _read_images(self) -> Iterator[Photograph]:
        seen: set = set()
        names: dict[str, Any] = {}
        for _, record in self.complete(self.content['images'], _IMAGE, 'images'):
            path = str(Path(self._folder, record['file_name']))
            image = Photograph(
                record['id'], record['file_name'], path, record['height'], record['width']
            )
            if image.id in seen:
                self.findings.add(kinds.DUPLICATE_IMAGE, f'{self.path}: {image}')
            elif path in names:
                self.findings.add(kinds.SAME_FILE, f'{image} and image {names[path]}')
            seen.add(image.id)
            names.setdefault(path, image.id)
            yield image
        if not self.content['images']:
            self.findings.add(kinds.NO_IMAGES, self.path)


def inspect_coco(dataset: dict) -> Report:
    """Inspect a dataset of boxes and masks.

    Args:
        dataset: Config of a ``CocoDataset`` or of a kind of it.

    Returns:
        What is wrong, and how many objects each class has.

    Raises:
        DataError: If the annotation file is no valid JSON or not in COCO's format.
    """
    findings = Findings()
    file = CocoFile(dataset, 'objects', findings)
    needs_masks = "'with_mask': True" in str(dataset.get('pipeline'))
    annotated, ids = set(), Counter()
    for number, record in file.complete(file.content['annotations'], _OBJECT, 'annotations'):
        place = file.place(number, record)
        ids[record['id']] += 1
        if ids[record['id']] == 2:
            findings.add(kinds.DUPLICATE_ANNOTATION, place)
        if record['category_id'] not in file.categories:
            what = f'{place} has category_id {record["category_id"]}'
            findings.add(kinds.UNKNOWN_CATEGORY, what)
        image = file.images.get(record['image_id'])
        if image is None:
            findings.add(kinds.UNKNOWN_IMAGE, f'{place} has image_id {record["image_id"]}')
            continue
        annotated.add(image.id)
        if dataset.get('test_mode') and 'iscrowd' not in record:
            findings.add(kinds.NO_CROWD, place)
        file.count(record['category_id'], image.id)
        place = f'{place} in {image}'
        check_box(record, image, place, findings)
        _check_mask(record.get('segmentation'), image, place, findings, needs_masks)
    file.add_without(annotated)
    file.add_unused()
    for image, picture in look_at_each(_look, list(file.images.values())):
        add_photograph(image, picture, findings)
    return Report(f'{dataset["type"]} {file.path}', len(file.images), findings, file.counts)


def add_photograph(image: Photograph, found: str | tuple[int, int], findings: Findings) -> None:
    """Compare what was found of an image with its record.

    Args:
        image: The image as the annotations describe it.
        found: Its height and width, or what is wrong with the file.
        findings: Where to put what is wrong.
    """
    if isinstance(found, str):
        kind = kinds.MISSING_IMAGE if found == 'is missing' else kinds.DAMAGED_IMAGE
        findings.add(kind, f'{image} {found}')
    elif found != (image.height, image.width):
        turned = ' (as its EXIF tag turns it)' if found == (image.width, image.height) else ''
        findings.add(
            kinds.IMAGE_SIZE,
            f'{image} is {found[1]}x{found[0]}{turned}, the annotations say '
            f'{image.width}x{image.height}',
        )


def check_box(record: dict, image: Photograph, place: str, findings: Findings) -> None:
    """Check an annotation's box, x, y, width and height in pixels.

    Args:
        record: The annotation, with ``bbox`` and ``area``.
        image: Its image.
        place: Where it stands, for people.
        findings: Where to put what is wrong.
    """
    box = record.get('bbox')
    if not _are_numbers(box) or len(box) != 4:
        findings.add(kinds.BOX_FORMAT, f'{place}: {box}')
        return
    x, y, width, height = box
    over = max(-x, -y, x + width - image.width, y + height - image.height)
    if width < 1 or height < 1 or record['area'] <= 0:
        findings.add(kinds.BOX_EMPTY, f'{place}: {box}, area {record["area"]}')
    elif x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        findings.add(kinds.BOX_OUTSIDE, f'{place}: {box}')
    elif over > _ROUNDING:
        findings.add(kinds.BOX_OVER_BORDER, f'{place}: {box}, by {over:g} pixels')


def _check_mask(mask: Any, image: Photograph, place: str, findings: Findings, needed: bool) -> None:
    if not mask:
        if needed:
            findings.add(kinds.NO_MASK, place)
    elif isinstance(mask, list):
        for polygon in mask:
            if not _are_numbers(polygon):
                findings.add(kinds.MASK_FORMAT, f'{place}: {_short(polygon)}')
            elif len(polygon) < 6 or len(polygon) % 2:
                findings.add(kinds.POLYGON, f'{place} has {len(polygon)} coordinates')
    elif isinstance(mask, dict) and isinstance(mask.get('counts'), (str, list)):
        fault = _rle_fault(mask, image)
        if fault:
            findings.add(kinds.MASK_SIZE, f'{place} {fault}')
    else:
        findings.add(kinds.MASK_FORMAT, f'{place}: {_short(mask)}')


def _rle_fault(mask: dict, image: Photograph) -> str | None:
    if mask.get('size') != [image.height, image.width]:
        return f'has size {mask.get("size")}, expected [{image.height}, {image.width}]'
    counts = mask['counts']
    runs = _decode_runs(counts) if isinstance(counts, str) else counts
    if not _are_numbers(runs) or any(run < 0 for run in runs):
        return 'has runs that are no numbers of pixels'
    if sum(runs) != image.height * image.width:
        return f'has runs of {sum(runs)} pixels, expected {image.height * image.width}'
    return None


def _decode_runs(text: str) -> list[int]:
    """Lengths of the runs in COCO's compressed form.

    Its own decoder trusts them, and writes where they lead.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        # From the fourth on, the difference to the last but one is stored.
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def _look(image: Photograph) -> str | tuple[int, int]:
    picture = read_photograph(image.path)
    return picture if isinstance(picture, str) else picture.shape[:2]


def _read(path: str) -> dict[str, list]:
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{path} is no valid JSON ({error}): annotations in COCO format were expected; get '
            'or write the file again.'
        ) from error
    parts = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        raise DataError(
            f'{path} is not in COCO format: one object with the lists "images", "annotations" '
            'and "categories" was expected.'
        )
    return content


def _lacking(record: Any, keys: dict[str, Any]) -> str | None:
    if not isinstance(record, dict):
        return f'is {_short(record)}, expected an object'
    missing = [key for key in keys if record.get(key) is None]
    if missing:
        return f'lacks {", ".join(missing)}'
    wrong = [key for key, kind in keys.items() if not isinstance(record[key], kind)]
    if wrong:
        return f'has {wrong[0]}={_short(record[wrong[0]])}'
    return None


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
