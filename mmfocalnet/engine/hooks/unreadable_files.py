"""Reports of unreadable files of a dataset."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocalnet.datasets.skip_unreadable import (
    count_samples,
    find_skipping,
    raise_on_unreadable,
)
from mmfocalnet.registry import register

# Iterations between two exchanges of the counts of the processes of a launch.
_INTERVAL = 100


@register(HOOKS)
class UnreadableFilesHook(Hook):
    """Count files that `SkipUnreadable` skips in training; raise in validation and test.

    In validation and test, a skipped file would change the score.
    """

    def before_train(self, runner: Runner) -> None:
        """Set the number of samples, which `SkipUnreadable` compares with its count."""
        dataset = runner.train_dataloader.dataset
        for transform in find_skipping(dataset):
            transform.total = count_samples(dataset)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Merge the counts of the processes of a launch."""
        if get_world_size() > 1 and self.every_n_train_iters(runner, _INTERVAL):
            for transform in find_skipping(runner.train_dataloader.dataset):
                transform.exchange()

    def after_train(self, runner: Runner) -> None:
        """Log how many files were left out."""
        count = sum(transform.count for transform in find_skipping(runner.train_dataloader.dataset))
        if count:
            runner.logger.warning(
                f'{count} unreadable files were left out of training. They are logged above.'
            )

    def before_val(self, runner: Runner) -> None:
        """Raise `DataError` at unreadable files of the validation set."""
        raise_on_unreadable(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Raise `DataError` at unreadable files of the test set."""
        raise_on_unreadable(runner.test_dataloader.dataset)
