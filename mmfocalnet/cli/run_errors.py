"""The error of a run that failed: where to look for the cause."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger

from mmfocalnet.cli.error_handling import RunError
from mmfocalnet.cli.misspellings import find_misspelling
from mmfocalnet.engine.hooks.atomic_checkpoint import LAST_CHECKPOINT
from mmfocalnet.errors import ConfigError, UserError


@contextmanager
def run_errors(cfg: Config) -> Iterator[None]:
    """Report misspelt names and keys of the config, and where to look for other causes.

    Args:
        cfg: The config of the run.

    Raises:
        ConfigError: If the config has a name that is not registered, or a key that its class
            does not accept.
        RunError: If anything else fails, except user errors. The message contains the log file, the
            config and, if a checkpoint was saved, how to continue.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if mistake := find_misspelling(cfg, error):
            raise ConfigError(mistake) from error
        raise RunError(_where_to_look(cfg)) from error


def _where_to_look(cfg: Config) -> str:
    handlers = MMLogger.get_current_instance().handlers
    logs = [one.baseFilename for one in handlers if isinstance(one, logging.FileHandler)]
    log = f' The log is {logs[0]}.' if logs else ''
    pointer = Path(cfg.work_dir, LAST_CHECKPOINT)
    # An earlier run may have left the file.
    last = MessageHub.get_current_instance().get_info('last_ckpt')
    saved = pointer.is_file() and pointer.read_text() == last
    resume = ' Continue training from the last checkpoint with --resume.' if saved else ''
    return f'The run of {cfg.filename} failed with the error above.{log}{resume}'
