"""Reading images and label maps in threads, with a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple, TypeVar

import numpy as np
from rich.progress import track

from mmfocalnet.datasets.image_files import ImageInfo

Item = TypeVar('Item')
Result = TypeVar('Result')

_MAX_THREADS = 16


class SampleFiles(NamedTuple):
    """Properties of an image and its label map.

    Attributes:
        image: Properties of the image.
        label_map: Shape of the label map, or what is wrong with it.
        pixels: Number of pixels of each value of the map.
    """

    image: ImageInfo
    label_map: tuple[int, ...] | str
    pixels: dict[int, int]


def read_each(
    read: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result]]:
    """Yield each item and the result of a function, in order, with a progress bar in a terminal.

    The function must not raise. Threads suffice, since decoders of images release the GIL.
    """
    # Leaving the block, also by Ctrl-C, drops the remaining items.
    with ThreadPool(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = track(
            pool.imap(read, items), 'Reading', len(items), disable=not sys.stdout.isatty()
        )
        yield from zip(items, results, strict=True)


def count_pixels(values: np.ndarray) -> dict[int, int]:
    """Number of pixels of each value in a map (H, W) of integers."""
    flat = values.ravel()
    # Sorting runs of equal values rather than pixels is many times faster.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(starts, append=flat.size)
    found, places = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(places.ravel(), lengths).astype(int)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
