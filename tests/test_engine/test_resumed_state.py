"""A training whose way depends on its validations, killed at any moment and resumed."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop
from toy_training import ToyMetric, toy_config

from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.cli.runner import train
from mmfocalnet.engine.hooks.atomic_checkpoint import AtomicBackend
from mmfocalnet.errors import CheckpointError

EPOCHS = 8
STOP = dict(type='EarlyStoppingHook', monitor='error', rule='less', patience=2, min_delta=0.05)
PLATEAU = dict(type='ReduceOnPlateauLR', monitor='error', rule='less', factor=0.1, patience=0)
BEST = dict(save_best='error', rule='less', max_keep_ckpts=1)
KINDS = {
    'patience': dict(custom_hooks=[STOP]),
    'patience and the best': dict(custom_hooks=[STOP], checkpoint=BEST),
    'a threshold and the best': dict(
        custom_hooks=[dict(STOP, stopping_threshold=1.0)], checkpoint=BEST
    ),
    'two patiences': dict(custom_hooks=[STOP, dict(STOP, patience=3), dict(STOP, monitor='mean')]),
    'a plateau': dict(param_scheduler=[PLATEAU]),
    'a plateau and the best': dict(param_scheduler=[PLATEAU], checkpoint=BEST),
    'intervals that change': dict(
        train_cfg=dict(
            type='EpochBasedTrainLoop', max_epochs=8, val_interval=4, dynamic_intervals=[(5, 1)]
        ),
        checkpoint=BEST,
    ),
    'two bests': dict(checkpoint={**BEST, 'save_best': ['error', 'mean']}),
}


@LOOPS.register_module()
class OwnLoop(BaseLoop):
    """Three iterations, without what MMEngine's loops know of validations."""

    epoch = max_epochs = 0
    max_iters = 3
    stop_training = False

    def __init__(self, runner, dataloader):
        super().__init__(runner, dataloader)
        self._epoch = self._iter = 0

    @property
    def iter(self):
        return self._iter

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        while self._iter < self.max_iters:
            batch = next(iter(self.dataloader))
            self.runner.call_hook('before_train_iter', batch_idx=0, data_batch=batch)
            losses = self.runner.model.train_step(batch, self.runner.optim_wrapper)
            self.runner.call_hook('after_train_iter', batch_idx=0, data_batch=batch, outputs=losses)
            self._iter += 1
        self.runner.call_hook('after_train')


class Killed(BaseException):
    """In place of SIGKILL."""


def config(folder, kind, resume=False):
    settings = dict(KINDS[kind])
    checkpoint = dict(type='AtomicCheckpointHook', interval=1, **settings.pop('checkpoint', {}))
    cfg = toy_config(
        folder,
        default_hooks=dict(checkpoint=checkpoint, param_scheduler=dict(type='ParamSchedulerHook')),
        resume=resume,
        load_from=None,
        **settings,
    )
    # A rate that is too high at first, so that the metric goes up and down.
    cfg.optim_wrapper.optimizer.lr = 0.3
    cfg.train_cfg.max_epochs = EPOCHS
    return cfg


def outcome(folder):
    """Names of the checkpoints, and the content of the newest but for names and times."""
    newest = (folder / 'last_checkpoint').read_text()
    state = torch.load(newest, weights_only=False)
    info = state['message_hub']['runtime_info']
    known = {
        key: info.get(key)
        for key in ('best_score', 'best_score_mean', 'validated', 'keep_ckpt_ids')
    }
    weights = [value.tolist() for value in state['state_dict'].values()]
    kept = {key: state.get(key) for key in ('optimizer', 'param_schedulers', 'early_stopping')}
    return (
        sorted(p.name for p in folder.glob('*.pth')),
        weights,
        known,
        json.dumps(kept, default=torch.Tensor.tolist),
    )


def go(folder, kind, resume=False):
    cfg = config(folder, kind, resume)
    load_initial_checkpoint(cfg)
    train(cfg)


def watch(monkeypatch, die_at=None):
    """Let a run die at its n-th writing, renaming, removal or batch to validate; list them."""
    passed = []

    def watched(function):
        def call(*args, **kwargs):
            passed.append(function.__name__)
            if len(passed) == die_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (AtomicBackend, 'put'),
        (os, 'replace'),
        (os, 'remove'),
        (ToyMetric, 'process'),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return passed


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A function that trains a kind of run without interruption, once: outcome and moments."""
    done = {}

    def _whole(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp('whole')
            with pytest.MonkeyPatch.context() as patch:
                passed = watch(patch)
                go(folder, kind)
            done[kind] = outcome(folder), passed
        return done[kind]

    return _whole


def test_the_kinds_of_runs_differ(whole):
    names, _, known, _ = whole('patience')[0]
    assert names[-1] == 'epoch_7.pth' and known['validated'] == 6  # stopped after 7 of 8
    assert whole('a threshold and the best')[0][0] == ['best_error_epoch_5.pth', 'epoch_5.pth']
    assert whole('a plateau')[0][1] != whole('two bests')[0][1]
    assert 'remove' in whole('two bests')[1] and 'remove' not in whole('patience')[1]


def survive(kind, folder, monkeypatch, *deaths):
    """Die at these moments of one run after the other, then go through to the end."""
    for death in deaths:
        with monkeypatch.context() as patch:
            watch(patch, death)
            try:
                go(folder, kind, resume=True)
            except Killed:
                continue
    go(folder, kind, resume=True)
    return outcome(folder)


@pytest.mark.parametrize(
    'step', [pytest.param(29, id='some'), pytest.param(1, id='all', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', KINDS)
def test_killed_and_resumed(kind, step, whole, tmp_path, monkeypatch):
    expected, passed = whole(kind)
    for death in range(step, len(passed) + 1, step):
        found = survive(kind, tmp_path / str(death), monkeypatch, death)
        assert found == expected, f'{death} of {passed}'


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_killed_repeatedly(kind, whole, tmp_path, monkeypatch):
    expected, passed = whole(kind)
    dice = random.Random(kind)
    for turn in range(10):
        deaths = [dice.randint(1, len(passed) // 2) for _ in range(4)]
        found = survive(kind, tmp_path / str(turn), monkeypatch, *deaths)
        assert found == expected, f'{deaths} of {passed}'


def resumed_with(folder, **settings):
    """Go on with other settings than those that a run was stopped with; the newest checkpoint."""
    cfg = config(folder, 'patience', resume=True)
    cfg.update(settings)
    load_initial_checkpoint(cfg)
    train(cfg)
    return Path((folder / 'last_checkpoint').read_text()).name


def test_a_stopped_run_continues_without_the_hook_that_stopped_it(tmp_path):
    kind = 'a threshold and the best'
    go(tmp_path / 'run', kind)
    go(tmp_path / 'run', kind, resume=True)
    assert outcome(tmp_path / 'run')[0] == ['best_error_epoch_5.pth', 'epoch_5.pth']
    for number, hooks in enumerate([[], [dict(STOP, stopping_threshold=0.01)]]):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / 'run', copy)
        (copy / 'last_checkpoint').write_text(str(copy / 'epoch_5.pth'))
        assert resumed_with(copy, custom_hooks=hooks) != 'epoch_5.pth'


def test_counters_are_restored_by_metric(tmp_path):
    go(tmp_path, 'patience')
    newest = torch.load(tmp_path / 'epoch_7.pth', weights_only=False)
    [counted] = newest['early_stopping']['hooks']
    assert counted['wait_count'] == 1 and counted['best_score'] == pytest.approx(0.5194, abs=1e-4)
    # The other metric has not been counted yet, so that one bad validation more is no end.
    assert resumed_with(tmp_path, custom_hooks=[dict(STOP, monitor='mean')]) == 'epoch_8.pth'


def test_invalid_early_stopping_counters(tmp_path):
    go(tmp_path, 'patience')
    path = tmp_path / 'epoch_7.pth'
    content = torch.load(path, weights_only=False)
    for junk in ({}, 3, dict(stopped=True, hooks=[3]), dict(stopped=True, hooks=[dict()])):
        torch.save({**content, 'early_stopping': junk}, path)
        with pytest.raises(CheckpointError, match=r'epoch_7\.pth.*early-stopping'):
            go(tmp_path, 'patience', resume=True)


def test_checkpoints_within_an_epoch_need_no_validation(tmp_path, monkeypatch):
    cfg = config(tmp_path, 'patience')
    cfg.train_cfg.max_epochs = 3
    cfg.train_dataloader.batch_size = 2  # four iterations an epoch
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    train(cfg)
    validated = []
    monkeypatch.setattr(ToyMetric, 'process', lambda self, *_: validated.append(self.results))
    monkeypatch.setattr(ToyMetric, 'evaluate', lambda self, _: dict(error=1.0, mean=1.0))
    cfg.update(resume=True, load_from=str(tmp_path / 'iter_6.pth'), experiment_name='within')
    train(cfg)
    assert len(validated) == 2 * 2  # of the second and third epoch, two batches each


def test_a_custom_loop_is_resumed(tmp_path):
    cfg = config(tmp_path, 'patience')
    cfg.train_cfg = dict(type='OwnLoop')
    cfg.default_hooks.checkpoint.by_epoch = False
    train(cfg)
    cfg.update(resume=True, load_from=str(tmp_path / 'iter_1.pth'), experiment_name='own')
    train(cfg)
    assert (tmp_path / 'iter_3.pth').exists()


def test_flexible_runner_counts_like_runner(tmp_path):
    """It takes the saving after a validation for that of the next epoch."""
    cfg = config(tmp_path, 'patience')
    strategy = dict(type='SingleDeviceStrategy')
    cfg.update(runner_type='FlexibleRunner', strategy=strategy, env_cfg={})
    cfg.default_hooks.checkpoint.update(BEST)
    train(cfg)
    content = torch.load(tmp_path / 'epoch_7.pth', weights_only=False)
    assert (content['meta']['epoch'], content['meta']['iter']) == (7, 14)
    best = torch.load(tmp_path / 'best_error_epoch_5.pth', weights_only=False)
    assert (best['meta']['epoch'], best['meta']['iter']) == (5, 10)


@pytest.mark.parametrize('kind', ['AtomicCheckpointHook', 'CheckpointHook'])
def test_another_hook_saves_at_other_iterations(tmp_path, kind):
    cfg = config(tmp_path, 'patience')
    cfg.custom_hooks = [dict(type=kind, by_epoch=False, interval=3)]
    train(cfg)
    for name, place in (('epoch_2', (2, 4)), ('iter_3', (1, 3)), ('epoch_3', (3, 6))):
        meta = torch.load(tmp_path / f'{name}.pth', weights_only=False)['meta']
        assert (meta['epoch'], meta['iter']) == place
