"""Learning-rate schedules that depend on a metric which a validation may not measure."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mmengine.hooks import ParamSchedulerHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import register

if TYPE_CHECKING:
    from mmengine.optim import _ParamScheduler


@register(HOOKS)
class TolerantParamSchedulerHook(ParamSchedulerHook):
    """MMEngine's ``ParamSchedulerHook`` that tolerates a validation without the monitored metric.

    mmdet's ``CocoMetric`` measures nothing if nothing was detected, as is common early in
    training. ``ReduceOnPlateauLR`` then keeps its state instead of ending the run.
    """

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Step the schedules that monitor a metric, if it was measured.

        Raises:
            ConfigError: If the evaluator never measures the monitored metric.
        """
        for scheduler in _monitoring(runner) if metrics is not None else ():
            name = getattr(scheduler, 'monitor', None)
            owner = f'monitor of {type(scheduler).__name__} (param_scheduler)'
            if name is None or find_metric(runner, metrics, name, owner) is not None:
                scheduler.step(metrics)


def _monitoring(runner: Runner) -> Iterator[_ParamScheduler]:
    """Iterate over the schedules that depend on validations."""
    schedules = runner.param_schedulers
    for group in schedules.values() if isinstance(schedules, dict) else [schedules]:
        for scheduler in group if isinstance(group, list) else ():
            if getattr(scheduler, 'need_val_args', False):
                yield scheduler


def find_metric(
    runner: Runner, metrics: Mapping[str, float], name: str, owner: str
) -> float | None:
    """Find the metric that a hook monitors, and log a warning if it was not measured.

    Args:
        runner: The runner, whose evaluator has measured them.
        metrics: Values by name of a validation.
        name: Name of the metric, such as ``'coco/bbox_mAP'``.
        owner: The setting that specifies it, for messages.

    Returns:
        The value; None if it is NaN, or if no metric of the same prefix was measured.

    Raises:
        ConfigError: If the evaluator of that prefix measures other metrics only, or if there is no
            evaluator of that prefix.
    """
    value = metrics.get(name)
    if value is not None and not math.isnan(value):
        return value
    prefix = name.rpartition('/')[0]
    others = any(other.rpartition('/')[0] == prefix for other in metrics)
    prefixes = [metric.prefix or '' for metric in runner.val_evaluator.metrics]
    # With several datasets, the prefix of the dataset precedes that of the metric.
    known = any(f'/{prefix}'.endswith(f'/{one}') for one in prefixes)
    if value is None and (others or not known):
        measured = f'use one of {", ".join(sorted(metrics))}' if metrics else 'correct it'
        raise ConfigError(
            f'{owner} is {name!r}, which the validation does not measure: {measured}.'
        )
    print_log(
        f'{name} was not measured, as when nothing is detected: {owner} ignores this validation.',
        logger='current',
        level=logging.WARNING,
    )
    return None
