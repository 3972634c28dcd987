"""Seeds that depend only on the seed of the run and the position in it.

MMEngine seeds once, at the start. A resumed run then draws other augmentations and proposals.
Here each sample and each iteration has its own seed. No state of generators
needs to be saved, and the number of worker processes does not matter.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import ClassBalancedDataset
from mmengine.registry import DATASETS, TRANSFORMS

from mmfocalnet.registry import register

# First number of the tuple that is hashed to a seed, so that sample n and iteration n differ.
SAMPLE, ITERATION = range(2)


def seed_from(*place: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and GPUs) in this process.

    Args:
        *place: Integers of at least 0; each tuple gives an unrelated seed.
    """
    seed = int(np.random.SeedSequence(place).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    # `torch.manual_seed` would record the call stack for unused GPUs, for every sample.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededIndex(int):
    """The index of a sample, with the place in the run that seeds it.

    Dataset wrappers derive indices from it by ``%`` or ``-``. The derived indices keep the place.

    Attributes:
        place: The arguments of `seed_from`.
    """

    def __new__(cls, index: int, place: tuple[int, ...]) -> SeededIndex:
        """Make one from an integer."""
        self = super().__new__(cls, index)
        self.place = place
        return self

    def __getnewargs__(self) -> tuple[int, tuple[int, ...]]:
        return int(self), self.place

    def __sub__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) - other, self.place)

    def __mod__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) % other, self.place)


@register(TRANSFORMS)
class SeedSample(BaseTransform):
    """Seed this process for one sample: the first step of a training pipeline.

    The seed is that of the `SeededIndex` in ``results['sample_idx']``, which `SeededSampler` and
    `SeededInfiniteSampler` yield. Without one, as in tests, the step does nothing.
    """

    def transform(self, results: dict) -> dict:
        """Seed Python, NumPy and PyTorch; the results are unchanged."""
        index = results.get('sample_idx')
        if isinstance(index, SeededIndex):
            seed_from(*index.place)
        return results


@register(DATASETS)
class SeededClassBalancedDataset(ClassBalancedDataset):
    """MMEngine's ``ClassBalancedDataset``, which passes on the seed of a sample."""

    def _get_ori_dataset_idx(self, idx: int) -> int:
        found = super()._get_ori_dataset_idx(idx)
        return SeededIndex(found, idx.place) if isinstance(idx, SeededIndex) else found
