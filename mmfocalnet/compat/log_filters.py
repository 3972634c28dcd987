"""Filters for messages of dependencies that a user cannot act on."""

from __future__ import annotations

import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

WARNINGS = (
    'faster_coco_eval is not installed',  # mmdet: a metric that our configs do not use
    'DeprecationWarning: `num_anchors` is deprecated',  # mmdet's ATSS reads its own property
    'The draw is False, it means that the hook',  # mmseg's default
    'Warning: The bbox is out of bounds',  # MMEngine's visualizer, of boxes at the border
    'Warning: The polygon is out of bounds',
    'torch.meshgrid: in an upcoming release',  # mmdet's Mask2Former
)
# The forks print this debug message on import; OneDL is a commercial data platform.
PRINTED = (
    'Could not import OneDL. Skipping OneDL datasets.',  # mmdet
    'Could not import OneDL',  # mmseg
)
LOGGED = (
    '"FileClient" will be deprecated',  # MMEngine, about its own CheckpointHook
    '"HardDiskBackend" is the alias',
    'The prefix is not set in metric class',  # MMEngine, about mmseg's IoUMetric
)


def import_datasets(scope: str | None) -> None:
    """Import the datasets and metrics of mmdet or mmseg without their messages.

    MMEngine's registries import them when they are first needed.

    Args:
        scope: The default scope of a config; others than ``'mmdet'`` and ``'mmseg'`` are ignored.
    """
    if scope not in ('mmdet', 'mmseg'):
        return
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), suppress(ImportError), warnings.catch_warnings():
            filter_warnings()
            for package in ('datasets', 'evaluation'):
                importlib.import_module(f'{scope}.{package}')
    finally:
        for line in printed.getvalue().splitlines(keepends=True):
            if line.strip() not in PRINTED:
                sys.stdout.write(line)


@contextmanager
def hide_info() -> Iterator[None]:
    """Log warnings and errors only, because MMEngine logs how it initializes each weight."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        yield
    finally:
        logging.disable(disabled)


def filter_warnings() -> None:
    """Ignore `WARNINGS`."""
    for message in WARNINGS:
        warnings.filterwarnings('ignore', message)


def filter_log(logger: logging.Logger) -> None:
    """Drop `LOGGED` messages from the log of a run.

    Args:
        logger: The logger of the runner.
    """
    logger.addFilter(lambda record: not record.getMessage().startswith(LOGGED))
