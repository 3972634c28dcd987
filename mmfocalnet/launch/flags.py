"""Flags that tools share."""

from __future__ import annotations

import errno
import os
import stat
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mmengine.config import DictAction

from mmfocalnet.checkpoints.report import shown
from mmfocalnet.errors import UserError


class _Options(DictAction):
    """KEY=VALUE pairs; anything else is a usage error."""

    def __call__(self, parser: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        try:
            super().__call__(parser, *args, **kwargs)
        except Exception:  # ValueError, AssertionError, SyntaxError, by the kind of typing error
            parser.error('--cfg-options takes KEY=VALUE pairs, such as train_cfg.max_epochs=1')


def integer(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    """Make what argparse's ``type`` takes for integers.

    Args:
        minimum: The smallest that is accepted.
        maximum: The largest that is accepted.
    """

    def integer(text: str) -> int:  # argparse prints this name
        value = int(text)
        if not minimum <= value <= maximum:
            raise ArgumentTypeError(f'{text} is not from {minimum} to {maximum}')
        return value

    return integer


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
            f'{flag} {shown(str(path))} cannot be used ({reason}): give a path that can be '
            'written to.'
        ) from error


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add the flag that overrides settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        help='override settings of the config: KEY=VALUE, lists as key="[a,b]" or key=a,b',
    )


def add_common_flags(parser: ArgumentParser) -> None:
    """Add the flags that train and test share, named as in mmdet and mmseg."""
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torchrun sets the environment variable; older launchers pass the flag.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
