"""Samplers that give each sample its own seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS

from mmfocalnet.engine.seeding import SAMPLE, SeededIndex
from mmfocalnet.registry import register


@register(DATA_SAMPLERS)
class SeededSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler``, with a seed per sample: (seed, epoch, position).

    Args:
        dataset: The dataset, whose pipeline starts with `SeedSample`.
        **settings: Arguments of ``DefaultSampler``: ``shuffle`` (default True), ``seed``,
            ``round_up``.
    """

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate over this process's share of an epoch."""
        for position, index in enumerate(super().__iter__()):
            place = (SAMPLE, self.seed, self.epoch, position * self.world_size + self.rank)
            yield SeededIndex(index, place)


@register(DATA_SAMPLERS)
class SeededInfiniteSampler(InfiniteSampler):
    """MMEngine's ``InfiniteSampler``, with a seed per sample: (seed, position).

    Args:
        dataset: The dataset, whose pipeline starts with `SeedSample`.
        **settings: Arguments of ``InfiniteSampler``: ``shuffle`` (default True), ``seed``.
    """

    def __init__(self, dataset: Any, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        self.start = 0

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate over this process's share of endless epochs."""
        for position, index in enumerate(super().__iter__(), self.start):
            place = (SAMPLE, self.seed, position * self.world_size + self.rank)
            yield SeededIndex(index, place)

    def skip(self, num_samples: int) -> None:
        """Skip samples when a run is resumed; called by the loops of the maintained fork.

        Args:
            num_samples: Number of samples that this process has used.
        """
        super().skip(num_samples)
        self.start = num_samples
