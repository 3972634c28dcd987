"""Curves of a training run: a PNG file, and SVG elements for the report."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmfocalnet.visualization.figures import save_figure
from mmfocalnet.visualization.training_log import Curve, History, key_curve, metrics

# A placeholder that is replaced by the text colour of the page around an SVG element.
_TEXT_COLOUR = '#010203'
_SVG_STYLE = {
    'svg.fonttype': 'path',
    'svg.hashsalt': 'mmfocalnet',  # equal curves give equal files
    'text.parse_math': False,  # a metric's name may contain "$"
    **dict.fromkeys(
        ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'),
        _TEXT_COLOUR,
    ),
}
_MAX_COLOURS = 8


def draw_curves(history: History, labels: Mapping[str, str], out: Path) -> None:
    """Draw the loss and some validation metrics over iterations, and write them as PNG to `out`.

    Args:
        history: The result of `read_history`, for a run that counts iterations.
        labels: Legend by key of a metric, such as ``coco/bbox_mAP_50``.
        out: The file.
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


def draw_panel(
    curves: Mapping[str, Curve], title: str, x_label: str, resumed: Sequence[float] = ()
) -> str:
    """Draw curves as an SVG element whose text has the colour of the page around it.

    Args:
        curves: Steps and values by label. If there are more than eight, labels with the same
            ending (``d0.loss_cls``, ``d1.loss_cls`` of a decoder's layers) share a colour.
        title: Title with the unit.
        x_label: What the steps count.
        resumed: Steps to mark with a dashed line.

    Returns:
        The element ``<svg>...</svg>``, without external references.
    """
    with rc_context(_SVG_STYLE):
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
        return _to_svg(figure)


def _plot(axes: Axes, curves: Mapping[str, Curve]) -> None:
    grouped = len(curves) > _MAX_COLOURS
    groups = {label: label.rpartition('.')[2] if grouped else label for label in curves}
    counts = Counter(groups.values())  # in the order of the curves
    colours = {group: f'C{number % 10}' for number, group in enumerate(counts)}
    for label, (steps, values) in curves.items():
        group = groups[label]
        count = counts.pop(group, 0)  # the first curve of a group labels it
        axes.plot(
            steps,
            values,
            color=colours[group],
            linewidth=1 if grouped else 1.5,
            marker='o' if len(steps) < 30 else None,  # a single point has no line
            markersize=3,
            label=(f'{group} ({count} curves)' if count > 1 else group) if count else None,
        )


def _to_svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :].strip().replace(_TEXT_COLOUR, 'currentColor')
    # The metadata contain only URLs.
    return re.sub(r'\s*<metadata>.*?</metadata>', '', svg, count=1, flags=re.DOTALL)
