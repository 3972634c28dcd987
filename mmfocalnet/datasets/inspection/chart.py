"""A bar chart of how often each class is labelled."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mmfocalnet.datasets.inspection.findings import ClassCounts
from mmfocalnet.files import replacing

# Inches.
_WIDTH = 7.0
_ROW = 0.17
# From such a ratio on, the rare classes would have no bar left that could be seen.
_LOGARITHMIC = 50


def draw_counts(counts: ClassCounts, title: str, path: Path) -> None:
    """Draw a bar for each class, the most frequent on top.

    Args:
        counts: What to draw; at least one class.
        title: Above the chart.
        path: PNG to write; its folder must exist.
    """
    order = counts.numbers.argsort(kind='stable')
    numbers = counts.numbers[order]
    names = [counts.names[place] for place in order]
    figure = Figure(figsize=(_WIDTH, 1.2 + _ROW * len(names)), layout='constrained')
    axes = figure.subplots()
    axes.barh(range(len(names)), numbers, height=0.75, color='tab:blue')
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.tick_params(labelsize=7)
    positive = numbers[numbers > 0]
    left = 0
    if positive.size and positive.max() > _LOGARITHMIC * positive.min():
        left = positive.min() / 2
        axes.set_xscale('log')
        axes.set_xlim(left, positive.max() * 8)
    else:
        axes.set_xlim(left, max(numbers.max(), 1) * 1.15)
    for place, number in enumerate(numbers):
        # A zero has no place on a logarithmic axis.
        axes.annotate(
            f'{number:,}',
            (max(number, left), place),
            (3, 0),
            textcoords='offset points',
            va='center',
            fontsize=7,
        )
    axes.set_xlabel(counts.unit, fontsize=8)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.spines[['top', 'right']].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
