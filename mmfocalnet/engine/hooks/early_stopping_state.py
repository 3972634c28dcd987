"""The counters of ``EarlyStoppingHook`` in checkpoints; MMEngine does not save them."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

KEY = 'early_stopping'
SETTINGS = ('monitor', 'rule', 'min_delta', 'patience', 'stopping_threshold', 'check_finite')


def save_patience(runner: Runner, checkpoint: dict) -> None:
    """Save the patience counters of each ``EarlyStoppingHook`` in a checkpoint.

    Args:
        runner: The runner.
        checkpoint: The checkpoint, changed in place.
    """
    if hooks := _hooks(runner):
        checkpoint[KEY] = dict(
            stopped=runner.train_loop.stop_training,
            hooks=[
                dict(
                    wait_count=hook.wait_count,
                    best_score=float(hook.best_score),
                    settings=_settings(hook),
                )
                for hook in hooks
            ],
        )


def restore_patience(runner: Runner, checkpoint: dict) -> None:
    """Restore patience counters, matching hooks by monitored metric.

    A run that was stopped stays stopped, unless its hooks have changed.

    Args:
        runner: The runner, which resumes.
        checkpoint: The loaded checkpoint.
    """
    if KEY not in checkpoint:
        return
    hooks, left = _hooks(runner), list(checkpoint[KEY]['hooks'])
    unchanged = [state['settings'] for state in left] == [_settings(hook) for hook in hooks]
    for hook in hooks:
        of_metric = [state for state in left if state['settings'][:2] == _settings(hook)[:2]]
        if of_metric:
            state = next((s for s in of_metric if s['settings'] == _settings(hook)), of_metric[0])
            left.remove(state)
            hook.wait_count = int(state['wait_count'])
            hook.best_score = float(state['best_score'])
    if checkpoint[KEY]['stopped'] and unchanged:
        runner.train_loop.stop_training = True
        runner.logger.info('EarlyStoppingHook ended this run; it does not continue.')


def _hooks(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _settings(hook: EarlyStoppingHook) -> list[Any]:
    return [getattr(hook, name) for name in SETTINGS]
