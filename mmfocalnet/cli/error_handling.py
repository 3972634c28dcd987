"""Error messages, exit codes and output lines of the tools."""

from __future__ import annotations

import errno
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

from mmfocalnet.compat.log_filters import filter_warnings
from mmfocalnet.errors import DataError, UserError
from mmfocalnet.text import escape

# Exit codes. Each tool sets 0 or 1 itself: 1 if data has errors or inputs were skipped.
USER_ERROR, UNEXPECTED = 2, 3
INTERRUPTED, CLOSED_STDOUT = 128 + 2, 128 + 13  # as shells report SIGINT and SIGPIPE
# The disk is full, or the user's quota, or the maximum size of a file is reached.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(Exception):
    """A run failed. ``__cause__`` is the cause; the message has the log file and the config."""


def report_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command: user errors end in an error message on stderr and exit code 2.

    User errors are `UserError` and a full disk. Other exceptions print a traceback; a `RunError`
    prints the traceback of its cause and its message. Both end with exit code 3. Ctrl-C ends in
    exit code 130. If the reader of stdout is closed, as in ``| head``, the command ends with exit
    code 141 without a message.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        _prepare_streams()
        filter_warnings()
        logging.raiseExceptions = False  # a full disk would print a traceback per log line
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # the tools set it for their imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code, closed = _run(main), _flush_stdout()
        if code or closed:
            sys.exit(code or closed)

    return wrapper


def check_usage(parse_args: Callable[[], Any]) -> None:
    """End with the help or a usage error, if any, before the slow imports of a tool.

    Args:
        parse_args: Parses the command line. The tool calls it again for the values.
    """
    _prepare_streams()
    try:
        parse_args()
    except SystemExit as end:
        sys.exit(end.code or _flush_stdout())


def print_lines(*lines: Any) -> None:
    """Print one line for each argument, with control characters escaped."""
    print(*map(escape, lines), sep='\n')


def print_error(text: str) -> None:
    """Print a line to stderr that starts with the name of the tool."""
    with suppress(OSError):  # stderr may be closed too
        print(f'{Path(sys.argv[0]).name}: {escape(text)}', file=sys.stderr)


def _prepare_streams() -> None:
    """Make stdout and stderr accept any text, also if they are closed or ASCII only."""
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def _run(main: Callable[[], None]) -> int | str | None:
    """Run a command, report its failure, and return its exit code."""
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
        cause = error.__cause__ if isinstance(error, RunError) and error.__cause__ else error
        # If stdout accepts a line, the broken pipe is not stdout.
        if isinstance(cause, BrokenPipeError) and (code := _flush_stdout('\n')):
            return code
        if message := _user_message(cause):
            if _is_reported_by_this_process(cause):
                print_error(message)
            return USER_ERROR
        traceback.print_exception(cause)
        if cause is not error:
            print_error(str(error))
        return UNEXPECTED
    return None


def _user_message(error: BaseException) -> str | None:
    """The error message for a user error or a full disk; None for other errors."""
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return (
            f'{error.filename or "A file"} cannot be written ({error.strerror}): free some space, '
            'then run again; continue training with --resume.'
        )
    if not isinstance(error, UserError):
        return None
    text = str(error)
    if _is_of_worker(error):
        # PyTorch raises it again with the traceback of the worker before the message.
        text = text.rsplit(f'{type(error).__name__}: ', 1)[-1]
    return ' '.join(text.split())


def _is_of_worker(error: BaseException) -> bool:
    """Whether an exception was raised in a worker of a data loader."""
    return str(error).startswith('Caught ')


def _is_reported_by_this_process(error: BaseException) -> bool:
    """Whether this process prints the error.

    Usually all processes of a launch raise the same error, and one per machine prints it. Faulty
    data may be found by a single process, which then prints it.
    """
    import torch  # a slow import, which --help and usage errors do not need

    of_one_batch = isinstance(error, DataError) and torch.distributed.is_initialized()
    return of_one_batch or _is_of_worker(error) or os.environ.get('LOCAL_RANK', '0') == '0'


def _flush_stdout(text: str = '') -> int:
    """Flush stdout; if that fails, discard the rest, which Python would flush again at exit.

    Args:
        text: Written first.

    Returns:
        The exit code: 0 if everything was written.
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
