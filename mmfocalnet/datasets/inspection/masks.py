"""Checks that pycocotools can decode masks, polygons and RLE.

pycocotools does not check its input: out-of-range coordinates and runs crash it or exhaust memory.
"""

from __future__ import annotations

from math import hypot
from reprlib import repr as short
from typing import Any

import numpy as np

VALID_POLYGONS = object()
"""Replaces polygons that have been checked."""

# Length in pixels. pycocotools needs 80 bytes per pixel, so at most 700 MB for a polygon.
_MAX_OUTLINE = 2**23
_MAX_DIGITS = 7


def are_valid_polygons(mask: Any) -> bool:
    """Whether a mask is a list of polygons that can be drawn."""
    return type(mask) is list and mask != [] and not any(map(polygon_fault, mask))


def polygon_fault(polygon: Any) -> str | None:
    """What is wrong with a polygon x1, y1, x2, y2, ... in pixels; None if it can be drawn."""
    if type(polygon) is not list:
        return f'has the polygon {short(polygon)}, expected a list of coordinates'
    if is_incomplete(polygon):
        return f'has {len(polygon)} coordinates'
    try:
        size = hypot(*polygon)  # a fast upper bound of the coordinates
        if size * len(polygon) <= _MAX_OUTLINE:
            return None
        if size <= len(polygon) * _MAX_OUTLINE and _outline(polygon) <= _MAX_OUTLINE:
            return None
    except TypeError:
        return f'has the polygon {short(polygon)}, expected a list of numbers'
    except OverflowError:  # an integer too large for a float
        pass
    largest = max(polygon, key=lambda value: (value != value, abs(value)))
    return f'has a polygon with the coordinate {short(largest)}, too large to be drawn'


def is_incomplete(polygon: list) -> bool:
    """Whether a polygon has under three points or half a point, so that mmdet skips it."""
    return len(polygon) < 6 or len(polygon) % 2 == 1


def _outline(polygon: list) -> float:
    """Pixels along the outline, or the maximum coordinate if that is larger."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    steps = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1)
    return max(np.abs(points).max(), steps.sum())


def rle_fault(mask: dict, height: int, width: int) -> str | None:
    """What is wrong with a mask in COCO's RLE; None if it fits its image.

    Args:
        mask: With ``size`` and ``counts``, compressed (a string) or not (a list).
        height: Height of the image.
        width: Width of the image.
    """
    if mask.get('size') != [height, width]:
        return f'has size {short(mask.get("size"))}, expected [{height}, {width}]'
    counts = mask['counts']
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    if runs is None or not set(map(type, runs)) <= {int} or min(runs, default=0) < 0:
        return 'has run lengths that are negative or not integers'
    if sum(runs) != height * width:
        return f'has runs of {short(sum(runs))} pixels, expected {height * width}'
    return None


def decode_runs(text: str) -> list[int] | None:
    """Decode the run lengths of COCO's compressed RLE; None if it is malformed.

    For malformed RLE, pycocotools reads and writes out of bounds.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift >= 5 * _MAX_DIGITS:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        # From the fourth run on, the difference to the run two before is stored.
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs
