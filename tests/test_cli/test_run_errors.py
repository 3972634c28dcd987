"""What a run reports when it fails."""

import errno
from pathlib import Path
from unittest.mock import Mock

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook, IterTimerHook
from mmengine.registry import HOOKS, TRANSFORMS
from toy_training import toy_config

from mmfocalnet.cli.error_handling import RunError, report_errors
from mmfocalnet.cli.misspellings import find_misspelling
from mmfocalnet.cli.runner import train
from mmfocalnet.errors import ConfigError, UserError


def scheduler(**settings):
    return dict(param_scheduler=[settings])


def hook(**settings):
    return dict(custom_hooks=[settings])


def pipeline(workers, **transform):
    dataset = dict(type='ToyDataset', serialize_data=False, pipeline=[transform])
    loader = dict(batch_size=4, num_workers=workers, dataset=dataset)
    return dict(train_dataloader=dict(**loader, sampler=dict(type='SeededSampler')))


@HOOKS.register_module()
class FaultyHook(Hook):
    """A custom hook that raises."""

    def __init__(self, place):
        self.place = place
        if place == 'init':
            raise TypeError('raised by init')

    def before_save_checkpoint(self, runner, **_):
        if self.place == 'save':
            raise OverflowError('raised by save')

    def after_train_epoch(self, runner):
        if self.place == 'second epoch' and runner.epoch == 1:
            raise OverflowError('raised by second epoch')


@TRANSFORMS.register_module()
class FaultyTransform:
    """A custom transform that raises."""

    def __call__(self, results):
        raise OverflowError('raised by transform')


@TRANSFORMS.register_module()
class Identity:
    """A transform that does nothing."""

    def __call__(self, results):
        return results


@pytest.fixture
def work_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'run'


MISSPELT = {
    'scheduler': (scheduler(type='MultStepLR'), 'MultStepLR', 'MultiStepLR'),
    'argument of a scheduler': (
        scheduler(type='MultiStepLR', milestone=[3]), 'milestone', 'milestones',
    ),
    'hook': (hook(type='EMAHok'), 'EMAHok', 'EMAHook'),
    'argument of a hook': (hook(type='EMAHook', momentun=1), 'momentun', 'momentum'),
}  # fmt: skip


@pytest.mark.parametrize(('settings', 'name', 'nearest'), MISSPELT.values(), ids=MISSPELT)
def test_misspelt_names_are_reported_with_the_nearest(work_dir, settings, name, nearest):
    with pytest.raises(ConfigError) as error:
        train(toy_config(work_dir, **settings))
    assert repr(name) in str(error.value) and repr(nearest) in str(error.value)


@pytest.mark.parametrize(
    ('settings', 'name', 'nearest'),
    [
        (scheduler(type='MultStepLR'), 'MultStepLR', 'MultiStepLR'),
        (dict(optim_wrapper=dict(optimizer=dict(type='AdamWW'))), 'AdamWW', 'AdamW'),
        (
            dict(train_dataloader=dict(sampler=dict(type='SeededSampl'))),
            'SeededSampl',
            'SeededSampler',
        ),
    ],
    ids=['scheduler', 'optimizer', 'sampler'],
)
def test_misspelt_names_are_reported_before_anything_is_written(work_dir, settings, name, nearest):
    cfg = toy_config(work_dir)
    cfg.merge_from_dict(settings)
    with pytest.raises(ConfigError) as error:
        train(cfg)
    assert repr(name) in str(error.value) and repr(nearest) in str(error.value)
    assert not work_dir.exists()


def test_a_metric_that_is_not_measured(work_dir):
    checkpoint = dict(type='AtomicCheckpointHook', save_best='eror', rule='less')
    with pytest.raises(UserError, match=r'save_best.*eror.*error'):
        train(toy_config(work_dir, default_hooks=dict(checkpoint=checkpoint)))


@pytest.mark.parametrize(
    ('settings', 'cause'),
    [
        (scheduler(type='LinearLR', start_factor=0.1, begin=5, end=3), ValueError),
        (pipeline(0, type='mmcv.Normalize', mean=[0], std=[1]), KeyError),
        (pipeline(0, type='FaultyTransform'), OverflowError),
        (hook(type='FaultyHook', place='init'), TypeError),
        (hook(type='FaultyHook', place='save'), OverflowError),
    ],
    ids=['scheduler', 'mmcv transform', 'custom transform', 'custom hook', 'saving'],
)
def test_other_errors_keep_their_type_and_traceback(work_dir, settings, cause):
    with pytest.raises(RunError, match=r'toy_training\.py') as error:
        train(toy_config(work_dir, **settings))
    assert type(error.value.__cause__) is cause
    assert error.value.__cause__.__traceback__


@pytest.fixture
def run_tool(capsys):
    """Train as a tool does; return exit code and stderr."""

    def run(cfg):
        with pytest.raises(SystemExit) as end:
            report_errors(lambda: train(cfg))()
        return end.value.code, capsys.readouterr().err

    return run


def test_traceback_then_log_and_config(work_dir, run_tool):
    code, text = run_tool(toy_config(work_dir, **hook(type='FaultyHook', place='save')))
    *trace, last = text.strip().splitlines()
    assert code == 3
    assert 'raised by save' in trace[-1] and any(Path(__file__).name in line for line in trace)
    [log] = work_dir.glob('*/*.log')
    assert str(log) in last and 'toy_training.py' in last and '--resume' not in last


def test_resume_is_suggested_after_a_checkpoint(work_dir, run_tool):
    code, text = run_tool(toy_config(work_dir, **hook(type='FaultyHook', place='second epoch')))
    assert code == 3
    assert '--resume' in text.splitlines()[-1]


def test_resume_is_not_suggested_for_a_checkpoint_of_an_earlier_run(work_dir, run_tool):
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_9.pth'))
    code, text = run_tool(toy_config(work_dir, **hook(type='FaultyHook', place='save')))
    assert code == 3
    assert '--resume' not in text.splitlines()[-1]


def test_calls_of_functions_are_not_attributed_to_the_config():
    cfg = Config(dict(head=dict(type='FaultyHook', sigma=1)), filename=__file__)
    for call in ('loss()', 'Head.forward()'):
        error = TypeError(f"{call} got an unexpected keyword argument 'sigma'")
        assert find_misspelling(cfg, error) is None


def test_pipelines_without_seeds_are_reported(work_dir, capsys):
    settings = dict(log_level='WARNING')
    train(toy_config(work_dir, **settings))
    assert 'SeedSample' not in capsys.readouterr().out
    train(toy_config(work_dir, **settings, **pipeline(0, type='Identity')))
    assert 'SeedSample' in capsys.readouterr().out


def test_a_full_disk_is_a_user_error(work_dir, run_tool, monkeypatch):
    full = OSError(errno.ENOSPC, 'No space left on device', 'some/file')
    monkeypatch.setattr(IterTimerHook, 'before_train_epoch', Mock(side_effect=full))
    code, text = run_tool(toy_config(work_dir))
    assert code == 2
    assert 'some/file' in text and 'Traceback' not in text
