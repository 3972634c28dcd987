"""Hook that seeds each training iteration."""

from __future__ import annotations

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocalnet.engine.seeding import ITERATION, seed_from
from mmfocalnet.registry import register


@register(HOOKS)
class SeedIterationsHook(Hook):
    """Seed each iteration, so that drop path and sampled proposals are reproducible.

    The seed is that of (seed of the run, iteration, rank of the process).
    """

    priority = 'VERY_HIGH'

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed this process."""
        seed_from(ITERATION, runner.seed, runner.iter, get_rank())
