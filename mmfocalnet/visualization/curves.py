"""Curves of a training run, from the log that MMEngine writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from matplotlib.figure import Figure

from mmfocalnet.errors import UserError


def read_scalars(work_dir: str | os.PathLike) -> list[dict[str, float]]:
    """Read the newest run's scalars of a work dir.

    Args:
        work_dir: Folder that MMEngine's Runner wrote.

    Returns:
        One dict per logged step, training and validation, oldest first.

    Raises:
        UserError: If no run has logged there.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise UserError(f'{work_dir} has no */vis_data/scalars.json: train into it first.')
    return [json.loads(line) for line in logs[-1].read_text().splitlines()]


def metric_curve(scalars: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Pick a validation metric out of a run's scalars.

    Args:
        scalars: What `read_scalars` returned.
        key: Name of the metric, such as ``coco/bbox_mAP_50`` or ``mIoU``.

    Returns:
        Steps and values in percent; mmdet logs COCO's as fractions, mmseg logs percents.
    """
    points = [entry for entry in scalars if key in entry]
    scale = 100 if key.startswith('coco/') else 1
    return [entry['step'] for entry in points], [scale * entry[key] for entry in points]


def draw_curves(scalars: list[dict[str, float]], metrics: dict[str, str], out: Path) -> None:
    """Draw the loss and the validation metrics of a run over its steps.

    Args:
        scalars: What `read_scalars` returned.
        metrics: Label per key of a validation metric, such as ``coco/bbox_mAP_50``.
        out: PNG file to write.
    """
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    loss_axes, metric_axes = figure.subplots(1, 2)
    steps = [entry for entry in scalars if 'loss' in entry]
    loss_axes.plot([e['step'] for e in steps], [e['loss'] for e in steps], color='tab:gray')
    loss_axes.set(title='Training loss', xlabel='Iteration', ylim=(0, None))
    for key, label in metrics.items():
        metric_axes.plot(*metric_curve(scalars, key), marker='o', label=label)
    metric_axes.set(title='Held-out images', xlabel='Iteration', ylabel='%', ylim=(0, 100))
    metric_axes.legend(loc='lower right')
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=100)
