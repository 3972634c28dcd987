"""The scalars that MMEngine logged in a work dir: losses, learning rates, validation metrics."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmfocalnet.errors import UserError

# Steps and values.
Curve = tuple[list[float], list[float]]


class Resumption(NamedTuple):
    """The iteration and epoch at which a run was resumed; epoch 0 if epochs are not counted."""

    iteration: int
    epoch: int


@dataclass
class History:
    """The joined scalars of the runs in a work dir; steps are unique and ascending.

    Attributes:
        runs: Folders of the joined runs, oldest first.
        training: Training entries; their ``step`` counts iterations.
        validation: Validation entries; their ``step`` counts epochs if `by_epoch`, else
            iterations.
        by_epoch: Whether the run counts epochs.
        resumed: Where it was resumed.
        replaced: Names of older runs that are left out, as a later one started from scratch.
        damaged: Number of unreadable lines, such as an incomplete last one.
    """

    runs: list[Path] = field(default_factory=list)
    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    by_epoch: bool = False
    resumed: list[Resumption] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    damaged: int = 0


def read_history(work_dir: str | os.PathLike) -> History:
    """Read and join the scalars of all runs in a work dir, finished or not.

    A resumed run replaces what the older run logged after the resumed iteration. A run that
    started from scratch replaces older runs.

    Args:
        work_dir: Folder that MMEngine's Runner wrote.

    Returns:
        The history; it has no entries if a run has started but not logged yet.

    Raises:
        UserError: If the folder does not exist or contains no run.
    """
    if not Path(work_dir).is_dir():
        raise UserError(
            f'There is no folder {str(work_dir)!r}: specify the work dir of a run, such as '
            'work_dirs/demo.'
        )
    folders = sorted(path.parent for path in Path(work_dir).glob('*/vis_data'))
    if not folders:
        raise UserError(
            f'{work_dir} is not the work dir of a run (it has no TIMESTAMP/vis_data): specify '
            'the folder that contains the TIMESTAMP folders.'
        )
    history = History()
    for folder in folders:
        entries, damaged = _read_entries(folder / 'vis_data/scalars.json')
        if any('iter' in entry for entry in entries):
            _append(history, folder, entries, damaged)
    # tools/test.py also writes such folders, without training entries.
    history.runs = history.runs or folders[-1:]
    return history


def _read_entries(path: Path) -> tuple[list[dict[str, float]], int]:
    """Numbers of each line of a file of scalars, and the number of unreadable lines."""
    entries, damaged = [], 0
    for line in path.read_text(errors='replace').splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            numbers = {key: value for key, value in entry.items() if type(value) in (int, float)}
        except (ValueError, RecursionError, AttributeError):
            numbers = {}
        if isinstance(numbers.get('step'), int):
            entries.append(numbers)
        else:
            damaged += 1
    return entries, damaged


def _append(history: History, folder: Path, entries: list[dict], damaged: int) -> None:
    """Join a later run to a history."""
    training = [entry for entry in entries if 'iter' in entry]
    validation = [entry for entry in entries if 'iter' not in entry]
    start = _find_start(folder, training, history.training)
    history.by_epoch = any('epoch' in entry for entry in training)
    if start.iteration:
        history.resumed = [past for past in history.resumed if past.iteration < start.iteration]
        history.resumed.append(start)
    else:
        history.replaced += [run.name for run in history.runs]
        history.runs, history.resumed, history.damaged = [], [], 0
    history.runs.append(folder)
    history.damaged += damaged
    history.training = _join(history.training, training, start.iteration)
    last_validation = start.epoch if history.by_epoch else start.iteration
    history.validation = _join(history.validation, validation, last_validation)


def _find_start(folder: Path, training: list[dict], older: list[dict]) -> Resumption:
    log = folder / f'{folder.name}.log'
    if log.is_file():
        # The message of MMEngine's Runner.
        found = re.search(r'resumed epoch: (\d+), iter: (\d+)', log.read_text(errors='replace'))
        epoch, iteration = map(int, found.groups()) if found else (0, 0)
    elif not older or training[0]['step'] <= older[0]['step']:
        epoch, iteration = 0, 0
    else:
        # Without a log, the first entry gives the latest possible start.
        epoch, iteration = training[0].get('epoch', 1) - 1, training[0]['step'] - 1
    return Resumption(iteration, epoch)


def _join(older: list[dict], newer: list[dict], last: int) -> list[dict[str, float]]:
    by_step = {entry['step']: entry for entry in older if entry['step'] <= last}
    by_step.update((entry['step'], entry) for entry in newer)
    return [by_step[step] for step in sorted(by_step)]


def loss_terms(training: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Curves of the terms of the loss, without the total, in the order of the log."""
    return _curves(training, lambda key: key != 'loss' and 'loss' in key)


def metrics(validation: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Curves of validation metrics over ``step``, those of COCO in percent.

    COCO's metrics that were never measured are left out: pycocotools returns -1 if a dataset has
    no objects of some size.
    """
    curves = _curves(validation, lambda key: key not in ('step', 'time', 'data_time', 'memory'))
    for key, (_, values) in list(curves.items()):
        if key.startswith('coco/'):
            if set(values) == {-1}:
                del curves[key]
            values[:] = [100 * value for value in values]
    return curves


def key_curve(entries: Iterable[Mapping[str, float]], key: str) -> Curve:
    """Steps and values of one key."""
    points = [entry for entry in entries if key in entry]
    return [entry['step'] for entry in points], [entry[key] for entry in points]


def _curves(
    entries: Iterable[Mapping[str, float]], wanted: Callable[[str], bool]
) -> dict[str, Curve]:
    keys = dict.fromkeys(key for entry in entries for key in entry if wanted(key))
    return {key: key_curve(entries, key) for key in keys}
