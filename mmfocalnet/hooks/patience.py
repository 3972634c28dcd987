"""What ``EarlyStoppingHook`` has counted, as a part of checkpoints; MMEngine forgets it."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from mmfocalnet.errors import CheckpointError

KEY = 'early_stopping'
SETTINGS = ('monitor', 'rule', 'min_delta', 'patience', 'stopping_threshold')


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
        checkpoint: What was loaded.

    Raises:
        CheckpointError: If the checkpoint holds something else in its place.
    """
    if KEY not in checkpoint:
        return
    try:
        counted = checkpoint[KEY]
        states = {tuple(state['settings'][:2]): state for state in counted['hooks']}
        for hook in _hooks(runner):
            if state := states.get(tuple(_settings(hook)[:2])):
                hook.wait_count = int(state['wait_count'])
                hook.best_score = float(state['best_score'])
        settings = [state['settings'] for state in counted['hooks']]
        stopped = bool(counted['stopped'])
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(
            f'{KEY} of the checkpoint that is resumed is not what EarlyStoppingHook has counted: '
            'take another checkpoint, or leave out --resume.'
        ) from error
    if stopped and settings == [_settings(hook) for hook in _hooks(runner)]:
        runner.train_loop.stop_training = True
        runner.logger.info('EarlyStoppingHook had ended this run: it does not go on.')


def _hooks(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _settings(hook: EarlyStoppingHook) -> list[Any]:
    return [getattr(hook, name) for name in SETTINGS]
