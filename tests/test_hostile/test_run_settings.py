"""Schedules, hooks and all else that a run comes upon: it trains, or one sentence says what."""

import errno
import importlib
import inspect
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.hooks import Hook, IterTimerHook
from mmengine.registry import HOOKS, MODELS, TRANSFORMS
from said import said_by
from torch._utils import ExceptionWrapper
from toy import ToyModel, toy_config

from mmfocalnet.cli import train
from mmfocalnet.cli.origins import message
from mmfocalnet.cli.settings import ABOUT
from mmfocalnet.errors import ConfigError, OneProcessError, UserError

JUNK = (
    *(None, 0, -1, 3.5, True, '', 'x', b'x', math.nan, math.inf, [], [None], {}, (), [{}], [[1]]),
    *(['a', 'b'], dict(type='x'), dict(type=3), dict, object, len, range(3)),
)
# What is sound of each, and the settings that get junk.
SCHEDULER_SETTINGS = {
    'LinearLR': (dict(start_factor=0.1), 'start_factor end_factor begin end by_epoch last_step'),
    'MultiStepLR': (dict(milestones=[2]), 'milestones gamma begin end convert_to_iter_based'),
    'CosineAnnealingLR': (dict(T_max=4), 'T_max eta_min eta_min_ratio begin end'),
    'PolyLR': ({}, 'power eta_min end'),
    'StepLR': (dict(step_size=1), 'step_size gamma'),
    'OneCycleLR': (dict(eta_max=1.0, total_steps=8), 'eta_max total_steps pct_start'),
    'ReduceOnPlateauLR': (
        dict(monitor='error', rule='less'),
        'monitor rule factor patience threshold cooldown min_value',
    ),
}
HOOK_SETTINGS = {
    'LoggerHook': ({}, 'interval ignore_last out_suffix keep_local log_metric_by_epoch x'),
    'EMAHook': ({}, 'momentum ema_type strict_load begin_iter begin_epoch'),
    'EarlyStoppingHook': (
        dict(monitor='error', rule='less'),
        'monitor rule min_delta patience strict stopping_threshold',
    ),
    'SyncBuffersHook': ({}, 'x'),
    'ProfilerHook': ({}, 'by_epoch profile_times activity_with_cpu schedule on_trace_ready'),
    'CheckLossesHook': ({}, 'x'),
    'ParamSchedulerHook': ({}, 'x'),
}
CHECKPOINT = (
    'interval by_epoch save_optimizer max_keep_ckpts save_last save_best rule greater_keys '
    'filename_tmpl published_keys save_begin backend_args'
)
TOP = (
    'log_processor visualizer randomness env_cfg auto_scale_lr '
    'efficient_conv_bn_eval val_cfg val_evaluator val_dataloader optim_wrapper param_scheduler '
    'custom_hooks train_cfg log_level'
)
PARTS = {
    'log_processor': (dict(type='LogProcessor'), 'by_epoch window_size custom_cfg mean_pattern'),
    'optim_wrapper': (
        dict(optimizer=dict(type='SGD', lr=0.1)),
        'accumulative_counts clip_grad optimizer constructor paramwise_cfg type',
    ),
    'train_cfg': (dict(by_epoch=True, max_epochs=2), 'type val_interval val_begin max_epochs'),
    'val_evaluator': (dict(type='ToyMetric'), 'type prefix collect_device x'),
}


def drawn(data, table):
    """A sound entry of a table, with junk for one of its settings."""
    name = data.draw(st.sampled_from(sorted(table)))
    sound, keys = table[name]
    key = data.draw(st.sampled_from(keys.split()))
    return name, {**sound, key: data.draw(st.sampled_from(JUNK))}


def said_of(work_dir, **settings):
    """The sentence about a toy run's settings, or None where it trains."""
    return said_by(lambda: train(toy_config(work_dir, **settings)))


@pytest.fixture
def work_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # junk may name a folder
    return tmp_path / 'run'


@given(data=st.data())
def test_junk_for_a_schedule(work_dir, data, count):
    count()
    name, settings = drawn(data, SCHEDULER_SETTINGS)
    stepped = dict(param_scheduler=dict(type='ParamSchedulerHook'))
    said_of(work_dir, param_scheduler=[dict(type=name, **settings)], default_hooks=stepped)


@given(data=st.data())
def test_junk_for_a_hook(work_dir, data, count):
    count()
    name, settings = drawn(data, {**HOOK_SETTINGS, 'AtomicCheckpointHook': ({}, CHECKPOINT)})
    if name == 'AtomicCheckpointHook':
        said_of(work_dir, default_hooks=dict(checkpoint=dict(type=name, **settings)))
    else:
        said_of(work_dir, custom_hooks=[dict(type=name, **settings)])


@given(data=st.data())
def test_junk_for_another_setting_of_a_run(work_dir, data, count):
    count()
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(TOP.split()))
        said_of(work_dir, **{key: data.draw(st.sampled_from(JUNK))})
    else:
        name, settings = drawn(data, PARTS)
        said_of(work_dir, **{name: settings})


def scheduler(**settings):
    return dict(param_scheduler=[settings])


def hook(**settings):
    return dict(custom_hooks=[settings])


def pipeline(workers, **transform):
    dataset = dict(type='ToyDataset', serialize_data=False, pipeline=[transform])
    loader = dict(batch_size=4, num_workers=workers, dataset=dataset)
    return dict(train_dataloader=dict(**loader, sampler=dict(type='SeededSampler')))


@HOOKS.register_module()
class UnsoundHook(Hook):
    """One of a user's."""

    def __init__(self, fault):
        self.fault = fault
        if fault == 'building':
            raise TypeError('of their own')

    def before_train(self, runner):
        if self.fault == 'before_train':
            raise TypeError('of their own')

    def before_save_checkpoint(self, runner, **_):
        if self.fault == 'nested':
            raise TypeError('of their own')

    def after_train_iter(self, runner, **_):
        if self.fault == 'calling':
            runner.build_param_scheduler(3)


@TRANSFORMS.register_module()
class UnsoundTransform:
    """One of a user's."""

    def __call__(self, results):
        raise TypeError('of their own')


@MODELS.register_module()
class UnsoundModel(ToyModel):
    """One of a user's."""

    def forward(self, *args, **kwargs):
        raise TypeError('of their own')


MISTAKES = {
    'an end before its begin': (
        scheduler(type='LinearLR', start_factor=0.1, begin=5, end=3),
        r'param_scheduler of .*toy.py does not fit what it builds, LinearLR, \(ValueError .*end '
        r'should be larger than begin, but got begin=5, end=3\): compare it with',
    ),
    'a misspelt scheduler': (scheduler(type='MultStepLR'), "did you mean 'MultiStepLR'"),
    'a misspelt setting of one': (
        scheduler(type='MultiStepLR', milestone=[3]),
        "did you mean 'milestones'",
    ),
    'a value met when it steps': (
        dict(
            **scheduler(type='MultiStepLR', milestones=[1], gamma='x'),
            default_hooks=dict(param_scheduler=dict(type='ParamSchedulerHook')),
        ),
        r'param_scheduler of .* does not fit \(TypeError in .*param_scheduler.py, line',
    ),
    'a misspelt hook': (hook(type='EMAHok'), "did you mean 'EMAHook'"),
    'a misspelt setting of a hook': (hook(type='EMAHook', momentun=1), "did you mean 'momentum'"),
    'a metric that there is not': (
        dict(
            default_hooks=dict(
                checkpoint=dict(type='AtomicCheckpointHook', save_best='eror', rule='less')
            )
        ),
        r'^save_best .* is .eror., which the validation does not measure: take .* error, mean.$',
    ),
    'a metric that there is not, for stopping': (
        hook(type='EarlyStoppingHook', monitor='eror', rule='less', strict=True),
        'EarlyStoppingHook in .* metric `eror is not available',
    ),
    'a transform that lacks what it needs': (
        pipeline(0, type='mmcv.Normalize', mean=[0], std=[1]),
        r"A pipeline of a dataset of .* \(KeyError in mmcv/transforms/processing.py.*: 'img'\)",
    ),
    'the same, in a worker': (
        pipeline(1, type='mmcv.Normalize', mean=[0], std=[1]),
        r"A pipeline of a dataset of .* \(KeyError in mmcv/transforms/processing.py.*: 'img'\)",
    ),
    'a number for layers': (
        dict(efficient_conv_bn_eval=3),
        'efficient_conv_bn_eval of .* does not fit',
    ),
    'a value that cannot be written down': (
        dict(note=len),
        'A value of .* does not fit .*SyntaxError',
    ),
}


# PyTorch waits for seconds for the worker to end.
SLOW = ['the same, in a worker']


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MISTAKES]
)
def test_mistakes_are_named(work_dir, name, count):
    count()
    settings, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        train(toy_config(work_dir, **settings))


FAULTS = ['building', 'before_train', 'calling', 'nested', 'transform', 'model']


@pytest.mark.parametrize('fault', FAULTS)
def test_what_a_user_wrote_keeps_its_traceback(work_dir, fault, count):
    count()
    settings = hook(type='UnsoundHook', fault=fault)
    if fault == 'transform':
        settings = pipeline(0, type='UnsoundTransform')
    elif fault == 'model':
        settings = dict(model=dict(type='UnsoundModel'))
    with pytest.raises(TypeError) as raised:
        train(toy_config(work_dir, **settings))
    assert any(entry.path == Path(__file__) for entry in raised.traceback[1:])


@pytest.mark.parametrize(
    ('settings', 'kind'),
    [
        (scheduler(type='MultiStepLR', milestones=3), ConfigError),  # met by all processes
        (pipeline(0, type='mmcv.Normalize', mean=[0], std=[1]), OneProcessError),
    ],
)
def test_who_says_it(work_dir, settings, kind, count):
    count()
    with pytest.raises(kind):
        train(toy_config(work_dir, **settings))


@pytest.mark.parametrize(
    ('settings', 'line'),
    [
        (scheduler(type='MultiStepLR', milestones=3), 'self.milestones = Counter(milestones)'),
        (hook(type='ProfilerHook', json_trace_path=3), 'export_chrome_trace'),
        (hook(type='EMAHook', momentum='x'), 'averaged_model.py'),
    ],
)
def test_the_traceback_is_in_the_log(work_dir, settings, line, count):
    count()
    assert said_of(work_dir, **settings)
    [log] = work_dir.glob('*/*.log')
    text = log.read_text()
    assert 'Traceback (most recent call last)' in text and line in text


def test_the_functions_that_tell_of_a_setting_are_there():
    for module, names in ABOUT.items():
        text = inspect.getsource(importlib.import_module(module))
        for name in names:
            assert f'def {name}(' in text, (module, name)


FULL = OSError(errno.ENOSPC, 'No space left on device')
LOST = RuntimeError('CUDA error: device-side assert triggered')
OUT = torch.cuda.OutOfMemoryError('CUDA out of memory')


@pytest.mark.parametrize('error', [FULL, MemoryError(), RuntimeError('of PyTorch'), LOST, OUT])
def test_a_full_disk_or_gpu_is_no_setting(work_dir, monkeypatch, error, count):
    """As if PyTorch had raised it, while a hook of MMEngine's runs."""
    count()
    monkeypatch.setattr(IterTimerHook, 'before_train_epoch', Mock(side_effect=error))
    with pytest.raises(type(error)):
        train(toy_config(work_dir))


@pytest.mark.parametrize('error', [LOST, OUT])
def test_a_gpu_that_fails_in_an_optimizer_is_no_setting(work_dir, monkeypatch, error, count):
    count()
    names = dict(__name__='torch.optim.sgd', error=error)
    code = 'def step(*args, **kwargs): raise error'
    exec(compile(code, torch.optim.__file__, 'exec'), names)
    monkeypatch.setattr(torch.optim.SGD, 'step', names['step'])
    with pytest.raises(type(error)):
        train(toy_config(work_dir))


@pytest.mark.parametrize('text', ['', 'KeyError: of a text', "'img'"])
def test_what_a_worker_says(text):
    try:
        raise AssertionError(text)
    except AssertionError as error:
        passed_on = ExceptionWrapper((type(error), error, error.__traceback__), 'in a worker')
    with pytest.raises(AssertionError) as raised:
        passed_on.reraise()
    assert message(raised.value).strip() == text or message(raised.value) == 'AssertionError'


def test_it_trains_without_junk(work_dir, count):
    count()
    assert said_of(work_dir) is None
