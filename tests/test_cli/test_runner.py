"""The warning of a training run whose samples are not seeded."""

import pytest
from mmengine.config import Config

from mmfocalnet.cli import runner

SEEDED = dict(type='A', pipeline=[dict(type='SeedSample'), dict(type='Resize')])
UNSEEDED = dict(type='B', pipeline=[dict(type='Resize')])


@pytest.fixture
def warn(monkeypatch):
    """Return the warnings for the training set and sampler of a config."""

    def _warn(dataset, sampler):
        texts = []
        monkeypatch.setattr(runner, 'print_log', lambda text, **settings: texts.append(text))
        loader = dict(dataset=dataset, sampler=dict(type=sampler))
        runner._warn_if_unseeded(Config(dict(train_dataloader=loader), filename=__file__))
        return texts

    return _warn


@pytest.mark.parametrize(
    ('dataset', 'key'),
    [
        (UNSEEDED, 'SeedSample'),
        (dict(type='C'), 'SeedSample'),
        (dict(type='ConcatDataset', datasets=[SEEDED, UNSEEDED]), 'B '),
        (dict(type='ClassBalancedDataset', dataset=SEEDED), 'SeededClassBalancedDataset'),
        (
            dict(
                type='RepeatDataset',
                dataset=dict(type='mmengine.ClassBalancedDataset', dataset=SEEDED),
            ),
            'SeededClassBalancedDataset',
        ),
    ],
)
@pytest.mark.parametrize('sampler', ['SeededSampler', 'mmengine.SeededInfiniteSampler'])
def test_a_warning_names_what_drops_the_seeds(warn, dataset, key, sampler):
    [text] = warn(dataset, sampler)
    assert key in text


@pytest.mark.parametrize(
    ('dataset', 'sampler'),
    [
        (SEEDED, 'SeededSampler'),
        (dict(type='RepeatDataset', dataset=SEEDED), 'SeededSampler'),
        (dict(type='SeededClassBalancedDataset', dataset=SEEDED), 'SeededSampler'),
        (UNSEEDED, 'DefaultSampler'),
    ],
)
def test_no_warning_if_all_samples_are_seeded_or_none(warn, dataset, sampler):
    assert not warn(dataset, sampler)
