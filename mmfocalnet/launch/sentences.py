"""What tools say of mistakes: one sentence each."""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from mmengine.config import Config
from mmengine.registry import Registry

from mmfocalnet.errors import ConfigError, DataError, OneProcessError, UserError

# The disk is full, the user's share of it, or the size that files may have.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a setting of a wrong type or value ends in, deep inside the classes of the stack.
STUMBLES = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RecursionError)


def one_sentence_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Let a command end mistakes of the user with one sentence on stderr and exit code 2.

    These are `UserError`, a full disk, and what MMEngine raises itself for a setting that a class
    does not take and for a class that it does not know. Everything else keeps its traceback, but
    Ctrl-C.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        logging.raiseExceptions = False  # a full disk would print a traceback per line of the log
        try:
            main()
        except KeyboardInterrupt:
            print(f'{Path(sys.argv[0]).name}: interrupted', file=sys.stderr)
            sys.exit(130)  # what shells say of it
        except Exception as error:
            text, in_worker = _message(error)
            sentence = ' '.join(text.split())
            if _raised_by_builder(error):
                sentence = f'The config does not fit what it builds ({sentence}): {_hint(error)}.'
            elif getattr(error, 'errno', None) in FULL_DISK:
                sentence = (
                    f'{error.filename or "A file"} cannot be written ({error.strerror}): make '
                    'room, then run it again; a training goes on with --resume.'
                )
            elif not isinstance(error, UserError):
                raise
            # Most often every process of a launch fails alike, and one per machine says why; but
            # what a worker stumbles over the others may not have met.
            alone = in_worker or isinstance(error, OneProcessError) or _is_of_one_batch(error)
            if alone or os.environ.get('LOCAL_RANK', '0') == '0':
                print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
            sys.exit(2)

    return wrapper


def _is_of_one_batch(error: Exception) -> bool:
    """Whether it is a fault of the data that one process of a running launch has met."""
    return isinstance(error, DataError) and torch.distributed.is_initialized()


def _message(error: Exception) -> tuple[str, bool]:
    """What an error says, and whether PyTorch passed it on from a worker of a data loader."""
    text = str(error)
    in_worker = text.startswith('Caught ') and 'Traceback (most recent call last)' in text
    # PyTorch puts the whole traceback into the message; its last line is what was raised.
    return text.rsplit(f'{type(error).__name__}: ', 1)[-1] if in_worker else text, in_worker


def _raised_by_builder(error: Exception) -> bool:
    """Whether MMEngine's builder itself raised, not the class that it was building."""
    if not isinstance(error, (TypeError, KeyError)):
        return False
    return _last_frame(error).f_code.co_name == 'build_from_cfg'


def _last_frame(error: Exception) -> FrameType:
    """The innermost frame, where the error was raised."""
    return list(traceback.walk_tb(error.__traceback__))[-1][0]


def _hint(error: Exception) -> str:
    """What to do about a name that the builder did not find: the nearest one, if there is any."""
    known, wrong = [], re.search(r"unexpected keyword argument '(\w+)'", str(error))
    seen = _last_frame(error).f_locals
    if wrong and 'obj_cls' in seen:
        known, name = list(inspect.signature(seen['obj_cls']).parameters), wrong[1]
    elif isinstance(seen.get('registry'), Registry) and isinstance(seen.get('obj_type'), str):
        registry, name = seen['registry'], seen['obj_type']
        while registry is not None:
            known += registry.module_dict
            registry = registry.parent
    near = difflib.get_close_matches(name, known, n=1) if known else ()
    return f'did you mean {near[0]!r}' if near else 'correct that name'


@contextmanager
def naming(
    setting: str, cfg: Config, stumbles: tuple[type[Exception], ...] = STUMBLES
) -> Iterator[None]:
    """Say of which setting of a config it is that a class of the stack stumbles over.

    These classes raise a bare TypeError or AssertionError for a list in place of a dict.

    Args:
        setting: Its name.
        cfg: The config.
        stumbles: What such errors are. Defaults to `STUMBLES`.

    Raises:
        ConfigError: With what was raised, and where.
    """
    try:
        yield
    except UserError:
        raise
    except stumbles as error:
        reason = ' '.join(str(error).split())[:300]
        place = _last_frame(error)
        file = '/'.join(Path(place.f_code.co_filename).parts[-3:])
        todo = f'compare {setting} with that of a config in configs/'
        if _raised_by_builder(error):
            todo = _hint(error)
        raise ConfigError(
            f'{setting} of {cfg.filename} does not fit what it builds ({type(error).__name__} in '
            f'{file}, line {place.f_lineno}: {reason}): {todo}.'
        ) from error
