"""How tools end: error messages, exit codes, and what they print."""

from __future__ import annotations

import functools
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mmfocalnet.cli.origins import is_of_worker, message
from mmfocalnet.cli.settings import FULL_DISK, hint, raised_by_builder
from mmfocalnet.errors import DataError, OneProcessError, UserError
from mmfocalnet.text import escape

# Exit codes. 0 and 1 are the tools' own: 1 where data has errors, or something was left out.
USER_ERROR, UNEXPECTED = 2, 3
INTERRUPTED, CLOSED_STDOUT = 128 + 2, 128 + 13  # as shells report SIGINT and SIGPIPE


def report_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Let a command end mistakes of the user with an error message on stderr and exit code 2.

    These are `UserError`, a full disk, and what MMEngine raises itself for a setting that a class
    does not take and for a class that it does not know. All other exceptions end with their
    traceback and exit code 3, Ctrl-C with exit code 130. If the reader of stdout is gone, as in
    ``| head``, the command ends with exit code 141 and without a message.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        _prepare_streams()
        logging.raiseExceptions = False  # a full disk would print a traceback per line of the log
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as the tools set it for imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code, closed = _run(main), _end_stdout()
        if code or closed:
            sys.exit(code or closed)

    return wrapper


def print_lines(*lines: Any) -> None:
    """Print one line for each argument, with control characters escaped."""
    print(*map(escape, lines), sep='\n')


def print_error(text: str) -> None:
    """Print a line to stderr that starts with the name of the tool."""
    with suppress(OSError):  # stderr may be closed too
        print(f'{Path(sys.argv[0]).name}: {escape(text)}', file=sys.stderr)


def _prepare_streams() -> None:
    """Let stdout and stderr take any text: they may be closed, or ASCII only."""
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def _run(main: Callable[[], None]) -> int | str | None:
    """Run a command, report how it failed, and return its exit code."""
    try:
        main()
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        with suppress(OSError):
            print(file=sys.stderr)  # terminals show ^C
        print_error('interrupted')
        return INTERRUPTED
    except Exception as error:
        # If stdout still takes a line, the pipe led to another process.
        broken = BrokenPipeError in (type(error), type(error.__cause__))
        if broken and (code := _end_stdout('\n')):
            return code
        if sentence := _sentence(error):
            if _is_to_be_printed(error):
                print_error(sentence)
            return USER_ERROR
        traceback.print_exception(error)
        return UNEXPECTED
    return None


def _sentence(error: Exception) -> str | None:
    """The error message for a mistake of the user or a full disk; None for other errors."""
    sentence = ' '.join(message(error).split())
    if raised_by_builder(error):
        return f'The config does not fit what it builds ({sentence}): {hint(error)}.'
    if getattr(error, 'errno', None) in FULL_DISK:
        return (
            f'{error.filename or "A file"} cannot be written ({error.strerror}): make room, then '
            'run it again; a training goes on with --resume.'
        )
    return sentence if isinstance(error, UserError) else None


def _is_to_be_printed(error: Exception) -> bool:
    """Most often all processes of a launch fail alike, and one per machine reports it.

    Faults of a worker or of one batch may have occurred in one process only.
    """
    of_one_batch = isinstance(error, DataError) and torch.distributed.is_initialized()
    alone = is_of_worker(error) or isinstance(error, OneProcessError) or of_one_batch
    return alone or os.environ.get('LOCAL_RANK', '0') == '0'


def _end_stdout(text: str = '') -> int:
    """Flush stdout. If that fails, drop the rest, which Python would flush once more at its end.

    Args:
        text: Written before.

    Returns:
        The exit code: 0 if all was written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
        return 0
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return CLOSED_STDOUT
        print_error(f'stdout cannot be written ({error.strerror}).')
        return USER_ERROR
