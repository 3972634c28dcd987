"""Going through many files with a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from mmengine.utils import ProgressBar

Item = TypeVar('Item')
Result = TypeVar('Result')

_MOST_THREADS = 16


def look_at_each(
    look: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result]]:
    """Call a function for each item, with a progress bar on standard output.

    Threads are enough, since decoders of pictures let the others run.

    Args:
        look: What to call; it must not raise.
        items: What to call it for.

    Yields:
        Each item and its result, in order.
    """
    if not items:
        return
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    # Leaving the block, also by Ctrl-C, drops what has not begun.
    with ThreadPool(threads) as pool:
        bar = ProgressBar(len(items), file=sys.stdout)
        for item, result in zip(items, pool.imap(look, items), strict=True):
            yield item, result
            bar.update()
        bar.file.write('\n')
