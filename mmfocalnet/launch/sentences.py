"""What tools say of mistakes: one sentence each."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mmfocalnet.errors import OneProcessError, UserError

# The disk is full, the user's share of it, or the size that files may have.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
                sentence = (
                    f'The config does not fit what it builds ({sentence}): correct that name.'
                )
            elif getattr(error, 'errno', None) in FULL_DISK:
                sentence = (
                    f'{error.filename or "A file"} cannot be written ({error.strerror}): make '
                    'room, then run it again; a training goes on with --resume.'
                )
            elif not isinstance(error, UserError):
                raise
            # Most often every process of a launch fails alike, and one per machine says why; but
            # what a worker stumbles over the others may not have met.
            alone = in_worker or isinstance(error, OneProcessError)
            if alone or os.environ.get('LOCAL_RANK', '0') == '0':
                print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
            sys.exit(2)

    return wrapper


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
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return frame.name == 'build_from_cfg'
