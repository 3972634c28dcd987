"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# How the temporary names begin.
PARTIAL = '.partial-'


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside a file, which replaces the file if all went well.

    Args:
        path: The file; its folder must exist.

    Yields:
        Where to write it, with the same suffix.

    Raises:
        OSError: If it cannot be written; nothing is left then.
    """
    # The end of a name has its suffix, and the whole might be as long as names can be.
    part = path.with_name(f'{PARTIAL}{os.getpid()}-{path.name[-40:]}')
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(OSError):  # where nothing could be written, nothing is left
            part.unlink(missing_ok=True)
