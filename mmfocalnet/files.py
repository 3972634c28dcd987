"""Writing files whole or not at all."""

from __future__ import annotations

import errno
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
        path: The file, or a link to it; its folder must exist.

    Yields:
        Where to write it, with the same suffix.

    Raises:
        OSError: If it cannot be written, or is there and no regular file; nothing is left then.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, 'it is no regular file', str(path))
    # The end of a name has its suffix, and the whole might be as long as names can be.
    part = path.with_name(f'{PARTIAL}{os.getpid()}-{path.name[-40:]}')
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(OSError):  # where nothing could be written, nothing is left
            part.unlink(missing_ok=True)


def short_stem(path: Path) -> str:
    """A file's name without suffix, cut so that numbers and suffixes fit behind it.

    File systems allow names of 255 bytes; this one has at most 200.
    """
    return path.stem.encode(errors='surrogateescape')[:200].decode(errors='ignore')
