"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmfocalnet.errors import UserError
from mmfocalnet.text import short_text

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


def is_url(path: object) -> bool:
    """Whether a path is an address such as ``http://...`` or ``s3://...``, not a local path."""
    return '://' in str(path)


def short_stem(path: Path) -> str:
    """A file's name without suffix, cut so that numbers and suffixes fit behind it.

    File systems allow names of 255 bytes; this one has at most 200.
    """
    return path.stem.encode(errors='surrogateescape')[:200].decode(errors='ignore')


def check_folder(flag: str, path: str | os.PathLike) -> None:
    """Check that a folder can be written to, if it exists. Nothing is made.

    Args:
        flag: The flag that specifies the folder.
        path: The folder.

    Raises:
        UserError: If it is no folder or not writable, or no folder can have its name.
    """
    with _naming_path(flag, path):
        str(path).encode()  # logs and configs contain it, in UTF-8
        if not str(path).isprintable():  # MMEngine prints it
            raise OSError(errno.EINVAL, 'its name has control characters')
        try:
            os.scandir(path).close()
        except FileNotFoundError:
            return
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, 'it is not writable')


def make_folder(flag: str, path: str | os.PathLike) -> None:
    """Make a folder that a tool writes to, unless it exists.

    Args:
        flag: The flag that specifies the folder.
        path: The folder.

    Raises:
        UserError: As `check_folder`, or if it cannot be made.
    """
    check_folder(flag, path)
    with _naming_path(flag, path):
        os.makedirs(path, exist_ok=True)


def check_file(flag: str, path: str | os.PathLike) -> None:
    """Check that a file can be written, as `check_folder` does. Nothing is made."""
    check_folder(flag, os.path.dirname(os.path.abspath(path)))
    with _naming_path(flag, path), suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise IsADirectoryError(errno.EISDIR, 'it is a folder')


@contextmanager
def _naming_path(flag: str, path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, 'strerror', None) or 'its name is not UTF-8 in this locale'
        raise UserError(
            f'{flag} {short_text(str(path))} cannot be used ({reason}): give a path that can be '
            'written to.'
        ) from error
