"""A training whose way depends on its validations, killed at any moment and resumed."""

import json
import os
import random

import pytest
import torch
from toy import ToyMetric, toy_config

from mmfocalnet.hooks.checkpoints import AtomicBackend
from mmfocalnet.launch import check_start, train

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
    'a plateau': dict(param_scheduler=[PLATEAU]),
    'a plateau and the best': dict(param_scheduler=[PLATEAU], checkpoint=BEST),
    'two bests': dict(checkpoint={**BEST, 'save_best': ['error', 'mean']}),
}


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
    known = {key: info.get(key) for key in ('best_score', 'validated_iter', 'keep_ckpt_ids')}
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
    check_start(cfg)
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


def test_the_kinds_differ_in_what_they_do(whole):
    names, _, known, _ = whole('patience')[0]
    assert names[-1] == 'epoch_7.pth' and known['validated_iter'] == 12  # stopped after 7 of 8
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
    'step', [pytest.param(13, id='some'), pytest.param(1, id='all', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', KINDS)
def test_killed_and_resumed(kind, step, whole, tmp_path, monkeypatch):
    expected, passed = whole(kind)
    for death in range(step, len(passed) + 1, step):
        found = survive(kind, tmp_path / str(death), monkeypatch, death)
        assert found == expected, f'{death} of {passed}'


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_killed_often(kind, whole, tmp_path, monkeypatch):
    expected, passed = whole(kind)
    dice = random.Random(kind)
    for turn in range(10):
        deaths = [dice.randint(1, len(passed) // 2) for _ in range(4)]
        found = survive(kind, tmp_path / str(turn), monkeypatch, *deaths)
        assert found == expected, f'{deaths} of {passed}'
