"""What an inspection of a dataset found: faults by kind, and how often each class is labelled."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmfocalnet.datasets.image_faults import Seen
from mmfocalnet.text import escape

MOST_SHOWN = 10
"""Findings of a kind that are kept; the others are counted."""

_IN_SUMMARY = 2
_MAX_LETTERS = 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = 60


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        title: In the plural, as a heading.
        is_error: Whether a training or evaluation stops at it or learns something wrong. Else it
            is a warning: MMDetection or MMSegmentation leave out what it names, or it may be
            meant.
    """

    title: str
    is_error: bool = True


MISSING_IMAGE = Kind('missing images')
DAMAGED_IMAGE = Kind('damaged images')
IMAGE_SIZE = Kind('images of another size than the annotations say')
INCOMPLETE = Kind('records with missing or wrong fields')
DUPLICATE_KEY = Kind('JSON keys that occur twice in an object with different values')
IDS = Kind('ids that mmdet or pycocotools cannot use')
FLAG = Kind('objects with iscrowd or ignore other than 0 or 1')
IMAGE_RECORD = Kind('image sizes that no image has')
DUPLICATE_IMAGE = Kind('image ids that occur twice')
DUPLICATE_ANNOTATION = Kind('annotation ids that occur twice')
DUPLICATE_CATEGORY = Kind('category ids that occur twice')
UNKNOWN_CATEGORY = Kind('unknown categories')
CLASSES = Kind('classes that do not fit')
NO_IMAGES = Kind('datasets without images')
NO_SAMPLES = Kind('datasets of which nothing is left to train on or to evaluate')
BOX_FORMAT = Kind('boxes that are not four numbers of pixels')
BOX_SIZE = Kind('boxes more than ten times as large as their image')
POLYGON = Kind('polygons that cannot be drawn')
MASK_SIZE = Kind('RLE masks of another size than their image')
MASK_FORMAT = Kind('masks that are neither polygons nor RLE')
AREA = Kind('areas that evaluation ignores')
NO_MASK = Kind('objects without a mask')
NO_CROWD = Kind('objects without iscrowd, which evaluation reads (0 for single ones)')
MISSING_MAP = Kind('missing label maps')
DAMAGED_MAP = Kind('damaged label maps')
MAP_SIZE = Kind('label maps of another size than their image')
MAP_CHANNELS = Kind('label maps of several channels')
MAP_VALUES = Kind('label maps of floating-point values')
LABEL_RANGE = Kind('labels without a class')
NO_LABELS = Kind('datasets whose label maps hold no label to learn')
SEGMENT_NOT_LISTED = Kind('segments of a panoptic map that segments_info lacks')
SEGMENT_NOT_DRAWN = Kind('segments in segments_info that the panoptic map lacks')
EVALUATED_AREA = Kind('segments of another area in segments_info, which evaluation reads')

POLYGON_LEFT_OUT = Kind(
    'polygons under three points or of an odd number of coordinates', is_error=False
)
BOX_EMPTY = Kind('boxes of no area (under a pixel)', is_error=False)
BOX_OUTSIDE = Kind('boxes outside their image', is_error=False)
BOX_OVER_BORDER = Kind('boxes that reach out of their image', is_error=False)
NO_ANNOTATIONS = Kind('images without annotations', is_error=False)
SKIPPED_CATEGORY = Kind('annotations of categories that the file does not list', is_error=False)
UNKNOWN_IMAGE = Kind('annotations of unknown images', is_error=False)
SAME_FILE = Kind('files that several images name', is_error=False)
UNUSED_CLASS = Kind('classes without annotations', is_error=False)
UNUSED_CATEGORY = Kind('categories of the file that are no classes of the config', is_error=False)
SEGMENT_AREA = Kind('segments of another area than in segments_info', is_error=False)
UNUSED_MAP = Kind('label maps without an image', is_error=False)
DARK_IMAGE = Kind('images that are nearly black in 8 bits', is_error=False)


class Findings:
    """Faults by kind; of each kind the first ten and the number of all."""

    def __init__(self) -> None:
        self._shown: dict[Kind, list[str]] = {}
        self._numbers: dict[Kind, int] = {}

    def add(self, kind: Kind, what: str) -> None:
        """Add one.

        Args:
            kind: Its kind.
            what: The file, the id and what is wrong.
        """
        shown = self._shown.setdefault(kind, [])
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        if len(shown) < MOST_SHOWN:
            shown.append(escape(what, _MAX_LETTERS))

    def add_image(self, name: str, seen: Seen) -> None:
        """Add what is wrong with an image file.

        Args:
            name: Its path, and its id if it has one.
            seen: What was seen of it.
        """
        if seen.fault:
            kind = MISSING_IMAGE if seen.fault == 'is missing' else DAMAGED_IMAGE
            self.add(kind, f'{name} {seen.fault}')
        if seen.warning:
            self.add(DARK_IMAGE, f'{name} {seen.warning}')

    def count(self, *, errors: bool) -> int:
        """Number of errors, or else of warnings."""
        return sum(n for kind, n in self._numbers.items() if kind.is_error == errors)

    def number(self, kind: Kind) -> int:
        """Number of findings of a kind."""
        return self._numbers.get(kind, 0)

    def shown(self, kind: Kind) -> Sequence[str]:
        """The first findings of a kind."""
        return self._shown.get(kind, ())

    def lines(self) -> list[str]:
        """All as text, errors first."""
        lines = []
        for kind in sorted(self._shown, key=lambda kind: not kind.is_error):
            severity = 'ERROR' if kind.is_error else 'warning'
            lines.append(f'{severity}: {kind.title}: {self._numbers[kind]}')
            lines += [f'    {what}' for what in self._shown[kind]]
            more = self._numbers[kind] - len(self._shown[kind])
            if more:
                lines.append(f'    ... and {more} more')
        return lines

    def summary(self) -> str:
        """The first errors of each kind in one line; empty if there are none."""
        return '; '.join(
            f'{kind.title}: {self._numbers[kind]} ({"; ".join(shown[:_IN_SUMMARY])}'
            f'{"; ..." if self._numbers[kind] > _IN_SUMMARY else ""})'
            for kind, shown in self._shown.items()
            if kind.is_error
        )


@dataclass
class ClassCounts:
    """How often each class is labelled.

    Attributes:
        names: The classes, in the config's order.
        unit: What is counted: ``'objects'``, ``'segments'`` or ``'pixels'``.
        numbers: (K,) of these in each class.
        images: (K,) images that have the class.
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
            rows.append((label, f'{number}', f'{number / total:.1%}', f'{images}'))
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        return [
            '  '.join(
                [row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]
            )
            for row in rows
        ]


@dataclass
class Report:
    """The outcome of an inspection.

    Attributes:
        title: Kind and place of the dataset.
        images: Number of its images.
        findings: What is wrong.
        counts: How often each class is labelled.
    """

    title: str
    images: int
    findings: Findings
    counts: ClassCounts


def short(value: Any) -> str:
    """A value for a message, as Python writes it but for its length; strings in quotes."""
    return _SHORT.repr(value)
