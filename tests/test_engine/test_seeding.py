"""What is random depends on the seed and the place in a run, on nothing else."""

import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from torch.utils.data import DataLoader

from mmfocalnet import (
    SeededClassBalancedDataset,
    SeededInfiniteSampler,
    SeededSampler,
    SeedIterationsHook,
    SeedSample,
)
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.engine.seeding import SeededIndex, seed_from

CONFIGS = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(p for p in CONFIGS.glob('*/*.py') if not p.parent.name.startswith('_'))


class Numbers(BaseDataset):
    """Ten samples."""

    def load_data_list(self):
        return [dict(number=number) for number in range(10)]

    def get_cat_ids(self, idx):
        """The last is of a rare category."""
        return [int(idx == 9)]


def draw(_=None):
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def dataset():
    return Numbers(pipeline=[SeedSample(), lambda results: (results['number'], *draw())])


def take(count, sampler, workers=0):
    loader = DataLoader(
        sampler.dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list
    )
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize('workers', [0, 2])
def test_infinite_sampler_from_any_position(workers):
    whole = take(9, SeededInfiniteSampler(dataset(), seed=3))
    assert len({sample for batch in whole for sample in batch}) == 18
    sampler = SeededInfiniteSampler(dataset(), seed=3)
    if not hasattr(super(SeededInfiniteSampler, sampler), 'skip'):
        pytest.skip('this MMEngine runs through what was seen')
    sampler.skip(2 * 4)
    seed_from(5)
    assert take(5, sampler, workers) == whole[4:]
    assert take(9, SeededInfiniteSampler(dataset(), seed=4)) != whole


@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_is_reproduced_from_its_start(workers):
    sampler = SeededSampler(dataset(), seed=3)
    first = take(5, sampler)
    sampler.set_epoch(1)
    second = take(5, sampler)
    assert sorted(sample[0] for batch in second for sample in batch) == list(range(10))
    assert not {sample[1:] for batch in first for sample in batch} & {
        sample[1:] for batch in second for sample in batch
    }
    resumed = SeededSampler(dataset(), seed=3)
    resumed.set_epoch(1)
    seed_from(5)
    assert take(5, resumed, workers) == second


@pytest.mark.parametrize(
    'wrap',
    [
        lambda: ConcatDataset([dataset(), dataset()]),
        lambda: RepeatDataset(dataset(), 2),
        lambda: SeededClassBalancedDataset(dataset(), 0.5),
    ],
)
@pytest.mark.parametrize('workers', [0, 2])
def test_wrapped_datasets(wrap, workers):
    whole = take(6, SeededInfiniteSampler(wrap(), seed=3))
    seed_from(5)
    assert take(6, SeededInfiniteSampler(wrap(), seed=3), workers) == whole


def test_a_rare_category_is_drawn_more_often():
    balanced = SeededClassBalancedDataset(dataset(), 0.5)
    samples = [one for batch in take(6, SeededSampler(balanced, seed=3)) for one in batch]
    assert sorted(number for number, *_ in samples) == [*range(9), 9, 9, 9]
    assert len(set(samples)) == 12


def test_samplers_leave_the_dataset_unchanged():
    shared = dataset()
    before = list(shared.pipeline.transforms)
    SeededSampler(shared, seed=3), SeededInfiniteSampler(shared, seed=3)
    assert shared.pipeline.transforms == before


def test_a_pickled_index_keeps_its_place():
    index = pickle.loads(pickle.dumps(SeededIndex(7, (1, 2))))
    assert (index, index.place) == (7, (1, 2))


def test_iterations_and_processes_have_different_seeds(monkeypatch):
    def draws(iteration, rank, seed=3):
        monkeypatch.setattr('mmfocalnet.engine.hooks.seed_iterations.get_rank', lambda: rank)
        SeedIterationsHook().before_train_iter(SimpleNamespace(seed=seed, iter=iteration), 0)
        return draw()

    assert draws(4, 0) == draws(4, 0)
    assert len({draws(4, 0), draws(5, 0), draws(4, 1), draws(4, 0, seed=4)}) == 4


def test_every_config_seeds_its_samples():
    for path in LEAVES:
        loader = Config.fromfile(path).train_dataloader
        assert loader.sampler.type in ('SeededSampler', 'SeededInfiniteSampler'), path
        [dataset] = find_datasets(loader.dataset)
        assert dataset.pipeline[0].type == 'SeedSample', path
