"""Randomness as a function of a run's seed and of where the run is.

MMEngine seeds once, at the start: a resumed run then augments, drops and samples otherwise than
the run that was not interrupted. Here each sample and each iteration has a seed of its own, so
that nothing random needs to be stored, whatever the number of worker processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import ClassBalancedDataset, Compose, DefaultSampler, InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner

from mmfocalnet.registry import register

# What a seed is for, so that the n-th sample and the n-th iteration have different ones.
SAMPLE, ITERATION = range(2)


def seed_from(*place: int) -> None:
    """Seed Python, NumPy and PyTorch, its GPUs too, in this process.

    Args:
        *place: Numbers, 0 or more; others give an unrelated seed.
    """
    seed = int(np.random.SeedSequence(place).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # `torch.manual_seed` notes the call stack for GPUs that are not in use yet, for every sample.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededIndex(int):
    """The index of a sample that brings the place in the run from which to seed it.

    It stays itself when dataset wrappers count modulo their length or from an offset.

    Attributes:
        place: What `seed_from` takes.
    """

    def __new__(cls, index: int, place: tuple[int, ...]) -> SeededIndex:
        """Make one of a plain index."""
        self = super().__new__(cls, index)
        self.place = place
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:
        return int(self), self.place

    def __sub__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) - other, self.place)

    def __mod__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) % other, self.place)


class SeededIndices(list):
    """A list of indices of which `SeededIndex` looks up one with its own place."""

    def __getitem__(self, index: int) -> int:
        found = super().__getitem__(index)
        return SeededIndex(found, index.place) if isinstance(index, SeededIndex) else found


def seed_sample(results: dict) -> dict:
    """Seed this process for the sample that a pipeline is about to make.

    Args:
        results: What the dataset says of the sample; unchanged.

    Returns:
        The same.
    """
    index = results.get('sample_idx')
    if isinstance(index, SeededIndex):  # a sample that replaces a bad one goes on with its seed
        seed_from(*index.place)
    return results


@register(DATA_SAMPLERS)
class SeededSampler(DefaultSampler):
    """MMEngine's ``DefaultSampler``, whose samples are augmented by (seed, epoch, position).

    Args:
        dataset: The dataset; its pipeline gets `seed_sample` before its first step.
        **settings: Those of ``DefaultSampler``: ``shuffle`` (default True), ``seed``,
            ``round_up``.
    """

    def __init__(self, dataset: Any, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        _seed_pipelines(dataset)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate over this process's share of an epoch."""
        for position, index in enumerate(super().__iter__()):
            place = (SAMPLE, self.seed, self.epoch, position * self.world_size + self.rank)
            yield SeededIndex(index, place)


@register(DATA_SAMPLERS)
class SeededInfiniteSampler(InfiniteSampler):
    """MMEngine's ``InfiniteSampler``, whose samples are augmented by (seed, position).

    Args:
        dataset: The dataset; its pipeline gets `seed_sample` before its first step.
        **settings: Those of ``InfiniteSampler``: ``shuffle`` (default True), ``seed``.
    """

    def __init__(self, dataset: Any, **settings: Any) -> None:
        super().__init__(dataset, **settings)
        _seed_pipelines(dataset)
        self.start = 0

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate over this process's share of endless passes."""
        for position, index in enumerate(super().__iter__(), self.start):
            place = (SAMPLE, self.seed, position * self.world_size + self.rank)
            yield SeededIndex(index, place)

    def skip(self, num_samples: int) -> None:
        """Go to where a run is resumed; the loops of the maintained fork call this.

        Args:
            num_samples: Samples that this process has used up.
        """
        super().skip(num_samples)
        self.start = num_samples


@register(HOOKS)
class SeedIterationsHook(Hook):
    """Seed what the model does at random (drop path, sampling of proposals) per iteration.

    The place is (seed of the run, iteration, rank of the process).
    """

    priority = 'VERY_HIGH'

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed this process."""
        seed_from(ITERATION, runner.seed, runner.iter, get_rank())


def _seed_pipelines(dataset: Any) -> None:
    """Let the pipelines of a dataset and of those that it wraps begin with `seed_sample`."""
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(pipeline, Compose) and seed_sample not in pipeline.transforms:
        pipeline.transforms.insert(0, seed_sample)
    if isinstance(dataset, ClassBalancedDataset):
        dataset.repeat_indices = SeededIndices(dataset.repeat_indices)
    wrapped = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for part in wrapped:
        if part is not None:
            _seed_pipelines(part)
