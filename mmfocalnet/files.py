"""Atomic writing of files, and checks of output paths."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmfocalnet.errors import UserError
from mmfocalnet.text import short_text

# Prefix of temporary names.
PARTIAL = '.partial-'


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary file in the same folder that replaces the file on success.

    Args:
        path: The file, or a link to it. Its folder must exist.

    Yields:
        The temporary path, with the same suffix.

    Raises:
        OSError: If it cannot be written, or exists and is not a regular file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, 'it is not a regular file', str(path))
    # Keep only the end with the suffix: the full name may already have the maximum length.
    part = path.with_name(f'{PARTIAL}{os.getpid()}-{path.name[-40:]}')
    try:
        yield part
        os.replace(part, path)
    finally:
        with suppress(OSError):  # nothing was written
            part.unlink(missing_ok=True)


def is_url(path: object) -> bool:
    """Whether a path is a URL such as ``http://...`` or ``s3://...``, not a local path."""
    return '://' in str(path)


def short_stem(path: Path) -> str:
    """A file's name without suffix, shortened so that numbers and suffixes can be appended.

    File systems allow names of 255 bytes; this one has at most 200.
    """
    return path.stem.encode(errors='surrogateescape')[:200].decode(errors='ignore')


def check_folder(flag: str, path: str | os.PathLike) -> None:
    """Check that a folder is writable, if it exists. Nothing is created.

    Args:
        flag: The flag that specifies the folder.
        path: The folder.

    Raises:
        UserError: If it is not a folder, not writable, or its name is invalid.
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
    """Create a folder for the output of a tool, unless it exists.

    Args:
        flag: The flag that specifies the folder.
        path: The folder.

    Raises:
        UserError: As `check_folder`, or if it cannot be created.
    """
    check_folder(flag, path)
    with _naming_path(flag, path):
        os.makedirs(path, exist_ok=True)


def check_file(flag: str, path: str | os.PathLike) -> None:
    """Check that a file can be written, as `check_folder` does. Nothing is created."""
    check_folder(flag, os.path.dirname(os.path.abspath(path)))
    with _naming_path(flag, path), suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise IsADirectoryError(errno.EISDIR, 'it is a folder')


def check_new_config(flag: str, path: str) -> None:
    """Check that a Python config can be written and does not exist; raises as `check_file`."""
    check_file(flag, path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f'{flag} {path} is in a folder that does not exist: create {folder}.')
    if os.path.lexists(path):
        raise UserError(f'{flag} {path} exists already: remove it, or specify another path.')
    if not path.endswith('.py'):
        raise UserError(f'{flag} {path} must end with .py: MMEngine reads configs by their suffix.')


@contextmanager
def _naming_path(flag: str, path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, 'strerror', None) or 'its name is not UTF-8 in this locale'
        raise UserError(
            f'{flag} {short_text(str(path))} cannot be used ({reason}): specify a writable path.'
        ) from error
