"""A bar chart of how often each class is labelled."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from mmfocalnet.datasets.inspection.findings import ClassCounts
from mmfocalnet.files import replacing

# Above this ratio, bars of rare classes would be invisible on a linear axis.
_MAX_LINEAR_RATIO = 50


def draw_counts(counts: ClassCounts, title: str, path: Path) -> None:
    """Draw a bar for each class, the most frequent on top.

    Args:
        counts: Counts of at least one class.
        title: Title of the chart.
        path: PNG to write; its folder must exist.
    """
    order = counts.numbers.argsort(kind='stable')
    numbers = counts.numbers[order]
    figure = Figure(figsize=(7, 1.2 + 0.17 * len(order)), layout='constrained')
    axes = figure.subplots()
    bars = axes.barh(range(len(order)), numbers, height=0.75, color='tab:blue')
    positive = numbers[numbers > 0]
    if positive.size and positive.max() > _MAX_LINEAR_RATIO * positive.min():
        axes.set_xscale('symlog')  # has a zero, unlike log
    axes.bar_label(bars, [f'{number:,}' for number in numbers], padding=3, fontsize=7)
    axes.margins(x=0.15)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_yticks(range(len(order)), [counts.names[i] for i in order], parse_math=False)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(counts.unit, fontsize=8)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.spines[['top', 'right']].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
