"""What ``EarlyStoppingHook`` has counted, as a part of checkpoints; MMEngine forgets it."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

KEY = 'early_stopping'
SETTINGS = ('monitor', 'rule', 'min_delta', 'patience', 'stopping_threshold', 'check_finite')


def save_patience(runner: Runner, checkpoint: dict) -> None:
    """Put it into a checkpoint, if there are such hooks.

    Args:
        runner: The runner.
        checkpoint: What is about to be saved; changed in place.
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
    """Take it up, by hooks that heed the same metric as then.

    A run that was stopped stays so, unless its hooks are gone or have other settings.

    Args:
        runner: The runner, which resumes.
        checkpoint: What was loaded; anything if it holds something else than `save_patience` put
            into it.
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
        runner.logger.info('EarlyStoppingHook had ended this run: it does not go on.')


def _hooks(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _settings(hook: EarlyStoppingHook) -> list[Any]:
    return [getattr(hook, name) for name in SETTINGS]
