"""Curves of a training run, from the log that MMEngine writes."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmfocalnet.errors import UserError
from mmfocalnet.visualization.draw_maps import save_figure

Curve = tuple[list[float], list[float]]

# Written for text and axes and then replaced, so that they have the colour of a page's text.
_TEXT_COLOUR = '#010203'
_STYLE = {
    'svg.fonttype': 'path',
    # The same curves give the same file.
    'svg.hashsalt': 'mmfocalnet',
    # A metric may be called anything, "$" included.
    'text.parse_math': False,
    **dict.fromkeys(
        ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'),
        _TEXT_COLOUR,
    ),
}
_MOST_TERMS = 8


@dataclass(frozen=True)
class Resumption:
    """Where a run was taken up: by which run, after which iteration and epoch (0: no epochs)."""

    run: str
    iteration: int
    epoch: int


@dataclass
class History:
    """What the runs in a work dir logged, joined; steps are unique and ascend.

    Attributes:
        runs: Folders of the runs that were joined, oldest first.
        training: Entries of training; their ``step`` counts iterations.
        validation: Entries of validation; their ``step`` counts epochs if `by_epoch`, else
            iterations.
        by_epoch: Whether the run counts epochs.
        resumed: Where it was resumed.
        replaced: Names of older runs that the joined ones did not continue, left out.
        damaged: Number of lines that could not be read, such as a last one cut short.
    """

    runs: list[Path] = field(default_factory=list)
    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    by_epoch: bool = False
    resumed: list[Resumption] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    damaged: int = 0


def draw_curves(history: History, labels: Mapping[str, str], out: Path) -> None:
    """Draw the loss and some validation metrics of a run over its iterations.

    Args:
        history: What `read_history` returned, of a run that counts iterations.
        labels: Label per key of a metric, such as ``coco/bbox_mAP_50``.
        out: PNG file to write.
    """
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    loss_axes, metric_axes = figure.subplots(1, 2)
    loss_axes.plot(*key_curve(history.training, 'loss'), color='tab:gray')
    loss_axes.set(title='Training loss', xlabel='Iteration', ylim=(0, None))
    curves = metrics(history.validation)
    for key, label in labels.items():
        metric_axes.plot(*curves[key], marker='o', label=label)
    metric_axes.set(title='Held-out images', xlabel='Iteration', ylabel='%', ylim=(0, 100))
    metric_axes.legend(loc='lower right')
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
    save_figure(figure, out)


def read_history(work_dir: str | os.PathLike) -> History:
    """Read and join the scalars of all runs in a work dir, finished or not.

    A run that resumed another replaces what that one logged after the resumed iteration; one
    that started afresh replaces older ones altogether.

    Args:
        work_dir: Folder that MMEngine's Runner wrote.

    Returns:
        The history; without entries if a run was started but has logged nothing yet.

    Raises:
        UserError: If there is no such folder or no run was started in it.
    """
    if not Path(work_dir).is_dir():
        raise UserError(
            f'There is no folder {str(work_dir)!r}: give the work dir of a training, such as '
            'work_dirs/demo.'
        )
    folders = sorted(path.parent for path in Path(work_dir).glob('*/vis_data'))
    if not folders:
        raise UserError(
            f'{work_dir} is not the work dir of a training (it has no TIMESTAMP/vis_data): train '
            'into it first, or give the folder that holds the TIMESTAMP folders.'
        )
    history = History()
    for folder in folders:
        entries, damaged = _read_entries(folder / 'vis_data/scalars.json')
        if any('iter' in entry for entry in entries):
            _append(history, folder, entries, damaged)
    # Without any, the newest was started last; tests leave folders without scalars, too.
    history.runs = history.runs or folders[-1:]
    return history


def _read_entries(path: Path) -> tuple[list[dict[str, float]], int]:
    """Entries of one file of scalars, and how many lines were no entries."""
    entries, damaged = [], 0
    for line in path.read_text(errors='replace').splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        entry = _numbers(entry) if isinstance(entry, dict) else {}
        if isinstance(entry.get('step'), int):
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged


def _numbers(entry: dict) -> dict[str, float]:
    return {key: value for key, value in entry.items() if _is_number(value)}


def _append(history: History, folder: Path, entries: list[dict], damaged: int) -> None:
    """Join a later run to a history."""
    training = [entry for entry in entries if 'iter' in entry]
    start = _start(folder, training, history.training)
    history.by_epoch = any('epoch' in entry for entry in training)
    if start.iteration:
        history.resumed = [past for past in history.resumed if past.iteration < start.iteration]
        history.resumed.append(start)
    else:
        history.replaced += [run.name for run in history.runs]
        history.runs, history.resumed, history.damaged = [], [], 0
    history.runs.append(folder)
    history.damaged += damaged
    validation = [entry for entry in entries if 'iter' not in entry]
    until = start.epoch if history.by_epoch else start.iteration
    history.training = _joined(history.training, training, start.iteration)
    history.validation = _joined(history.validation, validation, until)


def _start(folder: Path, training: list[dict], older: list[dict]) -> Resumption:
    log = folder / f'{folder.name}.log'
    if log.is_file():
        # MMEngine's words.
        found = re.search(r'resumed epoch: (\d+), iter: (\d+)', log.read_text(errors='replace'))
        epoch, iteration = map(int, found.groups()) if found else (0, 0)
    elif not older or training[0]['step'] <= older[0]['step']:
        epoch, iteration = 0, 0
    else:
        # All that is known is that it started before what it logged first.
        epoch, iteration = training[0].get('epoch', 1) - 1, training[0]['step'] - 1
    return Resumption(folder.name, iteration, epoch)


def _joined(older: list[dict], newer: list[dict], until: int) -> list[dict[str, float]]:
    by_step = {entry['step']: entry for entry in older if entry['step'] <= until}
    by_step.update((entry['step'], entry) for entry in newer)
    return [by_step[step] for step in sorted(by_step)]


def loss_terms(training: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Curves of the terms of the loss, the total left out, in the order of the log."""
    return _curves(training, lambda key: key != 'loss' and 'loss' in key)


def metrics(validation: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Curves of validation metrics over ``step``, COCO's in percent.

    Metrics that were never measured are left out: COCO's tools say -1 where a set has no
    objects of some size.
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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def draw_panel(
    curves: Mapping[str, Curve], title: str, x_label: str, resumed: Sequence[float] = ()
) -> str:
    """Draw curves into an SVG element whose text has the colour of the page around it.

    Args:
        curves: Steps and values per label, for the legend; more than eight labels that end
            alike (``d0.loss_cls``, ``d1.loss_cls`` of a decoder's layers) share a colour.
        title: What they show, with its unit.
        x_label: What the steps count.
        resumed: Steps to mark with a dashed line.

    Returns:
        The element ``<svg>...</svg>``, which refers to nothing outside it.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.2), layout='constrained')
        axes = figure.subplots()
        _plot(axes, curves)
        for step in resumed:
            axes.axvline(step, color=_TEXT_COLOUR, linestyle='--', linewidth=0.8, alpha=0.6)
        axes.set(xlabel=x_label)
        axes.set_title(title, loc='left', fontsize=11)
        values = [v for _, column in curves.values() for v in column if math.isfinite(v)]
        if min(values, default=0) >= 0:
            axes.set_ylim(0, 1.05 * max(values, default=0) or 1)
        axes.grid(alpha=0.25)
        axes.spines[['top', 'right']].set_visible(False)
        labels = len(axes.get_legend_handles_labels()[0])
        if labels > 1:
            columns = math.ceil(labels / math.ceil(labels / 4))
            figure.legend(loc='outside lower center', ncols=columns, frameon=False, fontsize=8)
        return _as_svg(figure)


def _plot(axes: Axes, curves: Mapping[str, Curve]) -> None:
    kinds: dict[str, int] = {}
    grouped = len(curves) > _MOST_TERMS
    for label in curves:
        kind = label.rpartition('.')[2] if grouped else label
        kinds[kind] = kinds.get(kind, 0) + 1
    colours = {kind: f'C{number % 10}' for number, kind in enumerate(kinds)}
    for label, (steps, values) in curves.items():
        kind = label.rpartition('.')[2] if grouped else label
        count = kinds.pop(kind, 0)
        axes.plot(
            steps,
            values,
            color=colours[kind],
            linewidth=1 if grouped else 1.5,
            # One point is no line.
            marker='o' if len(steps) < 30 else None,
            markersize=3,
            label=(f'{kind} ({count} curves)' if count > 1 else kind) if count else None,
        )


def _as_svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :].strip().replace(_TEXT_COLOUR, 'currentColor')
    # Nothing but addresses.
    return re.sub(r'\s*<metadata>.*?</metadata>', '', svg, count=1, flags=re.DOTALL)
