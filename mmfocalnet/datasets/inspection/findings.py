"""Results of an inspection: errors and warnings by kind, and how often each class is labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmfocalnet.datasets.image_files import MISSING, ImageInfo
from mmfocalnet.text import escape

MAX_SHOWN = 10
"""Findings of a kind that are kept; more are only counted."""

_MAX_IN_SUMMARY = 2
_MAX_LETTERS = 1000


@dataclass(frozen=True)
class Kind:
    """A kind of findings.

    Attributes:
        title: In the plural, as a heading.
        is_error: Whether it stops training or evaluation, or changes the result. Otherwise it is
            a warning: mmdet or mmseg skip the record, or it may be intended.
    """

    title: str
    is_error: bool = True


MISSING_IMAGE = Kind('missing images')
DAMAGED_IMAGE = Kind('damaged images')
IMAGE_SIZE = Kind('images of another size than in the annotations')
INCOMPLETE = Kind('records with missing or wrong fields')
DUPLICATE_KEY = Kind('duplicate JSON keys with different values')
IDS = Kind('ids that mmdet or pycocotools cannot use')
FLAG = Kind('objects with iscrowd or ignore other than 0 or 1')
IMAGE_RECORD = Kind('impossible image sizes')
DUPLICATE_IMAGE = Kind('duplicate image ids')
DUPLICATE_ANNOTATION = Kind('duplicate annotation ids')
DUPLICATE_CATEGORY = Kind('duplicate category ids')
UNKNOWN_CATEGORY = Kind('unknown categories')
CLASSES = Kind('classes other than the categories of the file')
NO_IMAGES = Kind('datasets without images')
NO_SAMPLES = Kind('datasets without samples to train on or to evaluate')
BOX_FORMAT = Kind('boxes that are not four finite numbers')
BOX_SIZE = Kind('boxes more than ten times as large as their image')
POLYGON = Kind('polygons that cannot be drawn')
MASK_SIZE = Kind('RLE masks of another size than their image')
MASK_FORMAT = Kind('masks that are neither polygons nor RLE')
AREA = Kind('areas that evaluation ignores')
NO_MASK = Kind('objects without a mask')
NO_CROWD = Kind('objects without iscrowd, which evaluation reads (0 for single objects)')
MISSING_MAP = Kind('missing label maps')
DAMAGED_MAP = Kind('damaged label maps')
MAP_SIZE = Kind('label maps of another size than their image')
MAP_CHANNELS = Kind('label maps of several channels')
MAP_VALUES = Kind('label maps of floating-point values')
LABEL_RANGE = Kind('labels without a class')
NO_LABELS = Kind('datasets without labels to learn in their label maps')
SEGMENT_NOT_LISTED = Kind('segments of a panoptic map that segments_info lacks')
SEGMENT_NOT_DRAWN = Kind('segments in segments_info that the panoptic map lacks')
EVALUATED_AREA = Kind('segments whose area differs from segments_info, which evaluation reads')

POLYGON_LEFT_OUT = Kind(
    'polygons with fewer than three points or an odd number of coordinates', is_error=False
)
BOX_EMPTY = Kind('boxes less than one pixel wide or high, or with area 0', is_error=False)
BOX_OUTSIDE = Kind('boxes outside their image', is_error=False)
BOX_OVER_BORDER = Kind('boxes that extend beyond their image', is_error=False)
NO_ANNOTATIONS = Kind('images without annotations', is_error=False)
SKIPPED_CATEGORY = Kind('annotations of categories that the file does not list', is_error=False)
UNKNOWN_IMAGE = Kind('annotations of unknown images', is_error=False)
SAME_FILE = Kind('files that belong to several images', is_error=False)
UNUSED_CLASS = Kind('classes without annotations', is_error=False)
UNUSED_CATEGORY = Kind('categories that are not classes of the config', is_error=False)
SEGMENT_AREA = Kind('segments whose area differs from segments_info', is_error=False)
UNUSED_MAP = Kind('label maps without an image', is_error=False)
DARK_IMAGE = Kind('images that are nearly black in 8 bits', is_error=False)


class Findings:
    """Errors and warnings by kind: the first ten of each kind and their number."""

    def __init__(self) -> None:
        self._shown: dict[Kind, list[str]] = {}
        self._numbers: Counter[Kind] = Counter()

    def add(self, kind: Kind, text: str) -> None:
        """Add a finding; the text has the file, the id and the fault."""
        shown = self._shown.setdefault(kind, [])
        self._numbers[kind] += 1
        if len(shown) < MAX_SHOWN:
            shown.append(escape(text, _MAX_LETTERS))

    def add_image(self, name: str, info: ImageInfo) -> None:
        """Add what is wrong with an image file: its path, id if any, and its properties."""
        if info.fault:
            kind = MISSING_IMAGE if info.fault == MISSING else DAMAGED_IMAGE
            self.add(kind, f'{name} {info.fault}')
        if info.warning:
            self.add(DARK_IMAGE, f'{name} {info.warning}')

    def add_map(self, name: str, fault: str) -> None:
        """Add a label map that cannot be decoded."""
        self.add(MISSING_MAP if fault == MISSING else DAMAGED_MAP, f'{name} {fault}')

    def total(self, *, errors: bool) -> int:
        """Number of errors, or else of warnings."""
        return sum(n for kind, n in self._numbers.items() if kind.is_error == errors)

    def count(self, kind: Kind) -> int:
        """Number of findings of a kind."""
        return self._numbers[kind]

    def shown(self, kind: Kind) -> Sequence[str]:
        """The first findings of a kind."""
        return self._shown.get(kind, ())

    def lines(self) -> list[str]:
        """All as text, errors first."""
        lines = []
        for kind in sorted(self._shown, key=lambda kind: not kind.is_error):
            severity = 'ERROR' if kind.is_error else 'warning'
            lines.append(f'{severity}: {kind.title}: {self._numbers[kind]}')
            lines += [f'    {text}' for text in self._shown[kind]]
            more = self._numbers[kind] - len(self._shown[kind])
            if more:
                lines.append(f'    ... and {more} more')
        return lines

    def summary(self) -> str:
        """The first errors of each kind in one line; empty if there are none."""
        return '; '.join(
            f'{kind.title}: {self._numbers[kind]} ({"; ".join(shown[:_MAX_IN_SUMMARY])}'
            f'{"; ..." if self._numbers[kind] > _MAX_IN_SUMMARY else ""})'
            for kind, shown in self._shown.items()
            if kind.is_error
        )


@dataclass
class ClassCounts:
    """How often each class is labelled.

    Attributes:
        names: The classes, in the config's order.
        unit: What is counted: ``'objects'``, ``'segments'`` or ``'pixels'``.
        numbers: (K,) number of units of each class.
        images: (K,) number of images with the class.
    """

    names: Sequence[str]
    unit: str
    numbers: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = np.zeros(len(self.names), np.int64)
        self.images = np.zeros(len(self.names), np.int64)

    def lines(self) -> list[str]:
        """As a table with a heading."""
        rows = [('class', self.unit, 'share', 'images')]
        total = max(int(self.numbers.sum()), 1)
        for name, number, images in zip(self.names, self.numbers, self.images, strict=True):
            label = escape(name, _MAX_LETTERS)
            rows.append((label, str(number), f'{number / total:.1%}', str(images)))
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        return [
            '  '.join([label.ljust(first), *map(str.rjust, cells, others)])
            for label, *cells in rows
        ]


@dataclass
class Report:
    """The result of an inspection.

    Attributes:
        title: Type and path of the dataset.
        images: Number of its images.
        findings: Errors and warnings.
        counts: How often each class is labelled.
    """

    title: str
    images: int
    findings: Findings
    counts: ClassCounts
