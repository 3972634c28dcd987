"""What tools say of mistakes: one sentence each."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from mmfocalnet.errors import DataError, OneProcessError, UserError
from mmfocalnet.launch.origins import is_of_worker, message
from mmfocalnet.launch.settings import FULL_DISK, hint, raised_by_builder


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
            print(f'\n{Path(sys.argv[0]).name}: interrupted', file=sys.stderr)
            sys.exit(130)  # what shells say of it
        except Exception as error:
            sentence = ' '.join(message(error).split())
            if raised_by_builder(error):
                sentence = f'The config does not fit what it builds ({sentence}): {hint(error)}.'
            elif getattr(error, 'errno', None) in FULL_DISK:
                sentence = (
                    f'{error.filename or "A file"} cannot be written ({error.strerror}): make '
                    'room, then run it again; a training goes on with --resume.'
                )
            elif not isinstance(error, UserError):
                raise
            # Most often every process of a launch fails alike, and one per machine says why; but
            # what a worker stumbles over the others may not have met.
            alone = (
                is_of_worker(error) or isinstance(error, OneProcessError) or _is_of_one_batch(error)
            )
            if alone or os.environ.get('LOCAL_RANK', '0') == '0':
                print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
            sys.exit(2)

    return wrapper


def _is_of_one_batch(error: Exception) -> bool:
    """Whether it is a fault of the data that one process of a running launch has met."""
    return isinstance(error, DataError) and torch.distributed.is_initialized()
