"""Checkpoints that are written whole, in an order that always leaves one."""

import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.logging import MessageHub
from stacks import float16_on_cpu
from torch import nn

from mmfocalnet import AtomicCheckpointHook
from mmfocalnet.engine.hooks.atomic_checkpoint import BACKEND, AtomicBackend
from mmfocalnet.errors import ConfigError, UserError


class Runner:
    """What the hook asks of MMEngine's Runner; checkpoints are empty files."""

    _resume, _load_from = True, None
    val_loop = None
    epoch = iter = 0
    hooks = ()
    train_loop = SimpleNamespace(iter=0, max_iters=10)

    def __init__(self, folder, name, model=None):
        self.work_dir = str(folder)
        self.model = model or nn.Linear(2, 1)
        self.message_hub = MessageHub(name)
        self.logger = SimpleNamespace(info=print)
        self.there = []

    def save_checkpoint(self, out_dir, filename, *args, backend_args, **settings):
        AtomicBackend().put(b'', os.path.join(out_dir, filename))
        assert backend_args == dict(backend=BACKEND)
        self.there.append(sorted(f for f in os.listdir(out_dir) if f.endswith('.pth')))


@pytest.fixture
def runner(tmp_path, request):
    return Runner(tmp_path, request.node.name)


def test_older_checkpoints_are_removed_after_the_new_one_is_saved(runner, tmp_path):
    hook = AtomicCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1)
    (tmp_path / '.partial-7-iter_1.pth').touch()
    (tmp_path / 'iter_9.pth').touch()
    runner.message_hub.update_info('outdated_ckpts', ['iter_9.pth', 'iter_8.pth'])
    hook.before_train(runner)
    assert not list(tmp_path.iterdir())
    for runner.iter in range(3):
        hook.after_train_iter(runner, runner.iter)
        newest = tmp_path / f'iter_{runner.iter + 1}.pth'
        assert (tmp_path / 'last_checkpoint').read_text() == str(newest)
    assert runner.there == [
        ['iter_1.pth'],
        ['iter_1.pth', 'iter_2.pth'],
        ['iter_2.pth', 'iter_3.pth'],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['iter_3.pth', 'last_checkpoint']
    assert runner.message_hub.get_info('keep_ckpt_ids') == [3]


def test_checkpoints_outside_the_work_dir(runner, tmp_path):
    """The mark of the newest is in the work dir, and so may be what is left of writing it."""
    runner.work_dir = str(tmp_path / 'run')
    out = tmp_path / 'elsewhere/run'
    for folder in (tmp_path / 'run', out):
        folder.mkdir(parents=True)
        (folder / '.partial-7-x').touch()
    hook = AtomicCheckpointHook(interval=1, by_epoch=False, out_dir=str(tmp_path / 'elsewhere'))
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    assert [path.name for path in out.iterdir()] == ['iter_1.pth']
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['last_checkpoint']


def test_only_one_process_removes_checkpoints(runner, tmp_path, monkeypatch):
    monkeypatch.setattr('mmfocalnet.engine.hooks.atomic_checkpoint.is_main_process', lambda: False)
    hook = AtomicCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1)
    hook.before_train(runner)
    for runner.iter in range(2):
        hook.after_train_iter(runner, runner.iter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['iter_1.pth', 'iter_2.pth']


@pytest.mark.parametrize('by_metric', ['error', ['error', 'loss']])
def test_the_best_is_removed_after_a_better_one_is_saved(runner, tmp_path, monkeypatch, by_metric):
    hook = AtomicCheckpointHook(interval=-1, by_epoch=False, save_best=by_metric, rule='less')
    hook.before_train(runner)

    def validate(**metrics):
        saved = len(runner.there)
        hook.after_val_epoch(runner, dict(loss=0.0, **metrics))
        assert len(runner.there) == saved  # other hooks come first
        hook.after_val(runner)

    def bests():
        return sorted(path.name for path in tmp_path.glob('best_error*'))

    validate(error=2.0)
    runner.iter = 1
    validate(error=3.0)
    assert bests() == ['best_error_iter_0.pth']
    with monkeypatch.context() as full:
        full.setattr(os, 'fsync', lambda _: os.write(-1, b''))
        with pytest.raises(UserError, match='cannot be written'):
            validate(error=1.0)
    assert bests() == ['best_error_iter_0.pth']
    runner.iter = 2
    validate(error=0.5)
    assert bests() == ['best_error_iter_2.pth']


def save_newest_and_best(runner):
    """What a run does after it has loaded a checkpoint: an iteration and a validation."""
    hook = AtomicCheckpointHook(
        interval=1, by_epoch=False, max_keep_ckpts=1, save_best='error', rule='less'
    )
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    hook.after_val_epoch(runner, dict(error=0.0))
    hook.after_val(runner)


HOSTILE = [
    ['/etc/passwd', '../iter_9.pth', '', '.', '..', 'sub/iter_9.pth', 'iter_9.pth/..', 'notes.pth'],
    ['best_/../iter_9.pth', 'iter_x.pth', 3, None, ['iter_9.pth']],
    'iter_9.pth',
    dict(a='iter_9.pth'),
    7,
]


@pytest.mark.parametrize('names', [*HOSTILE, ['/../notes', '/../sub/iter_9', -1, 9.0, 1, 2]])
@pytest.mark.parametrize('key', ['outdated_ckpts', 'keep_ckpt_ids', 'best_ckpt'])
def test_only_checkpoints_of_the_folder_are_removed(runner, tmp_path, key, names):
    """A checkpoint from anybody says what a killed run has left."""
    runner.work_dir = str(tmp_path / 'run')
    files = [tmp_path / 'run/notes.pth', tmp_path / 'run/sub/iter_9.pth', tmp_path / 'iter_9.pth']
    (tmp_path / 'run/sub').mkdir(parents=True)
    for file in files:
        file.touch()
    runner.message_hub.update_info(key, names)
    save_newest_and_best(runner)
    assert all(file.exists() for file in files)


def test_resuming_from_another_folder_removes_nothing(runner, tmp_path):
    (tmp_path / 'iter_9.pth').touch()
    runner.message_hub.update_info('outdated_ckpts', ['iter_9.pth'])
    runner._load_from = str(tmp_path / 'other/iter_10.pth')
    best = tmp_path / 'other/best_error_iter_9.pth'
    best.parent.mkdir()
    best.touch()
    runner.message_hub.update_info('best_ckpt', str(best))
    runner.message_hub.update_info('keep_ckpt_ids', [8, 9])
    save_newest_and_best(runner)
    assert (tmp_path / 'iter_9.pth').exists() and best.exists()
    runner._load_from = str(tmp_path / 'iter_10.pth')
    runner.message_hub.update_info('outdated_ckpts', ['iter_9.pth'])
    AtomicCheckpointHook(interval=1, by_epoch=False).before_train(runner)
    assert not (tmp_path / 'iter_9.pth').exists()


@pytest.mark.parametrize(
    'template',
    ['newest.pth', './newest.pth', 'sub/iter_{}.pth', 'iter_{:04d}.pth', '..iter_{}.pth'],
)
def test_filename_templates(runner, tmp_path, template):
    (tmp_path / 'sub').mkdir()
    hook = AtomicCheckpointHook(
        interval=1,
        by_epoch=False,
        max_keep_ckpts=1,
        filename_tmpl=template,
        save_best='error',
        rule='less',
    )
    hook.before_train(runner)
    for runner.iter in range(3):
        hook.after_train_iter(runner, runner.iter)
        hook.after_val_epoch(runner, dict(error=-float(runner.iter)))
        hook.after_val(runner)
    best = f'best_error_{template.format(2).replace("/", "_")}'
    there = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.pth')]
    assert sorted(there) == sorted([best, os.path.normpath(template.format(2))])
    assert runner.message_hub.get_info('best_ckpt') == str(tmp_path / best)


def test_a_better_checkpoint_of_the_same_name(runner, tmp_path):
    """As of epochs that an iteration loop does not count."""
    hook = AtomicCheckpointHook(interval=-1, save_best='error', rule='less')
    hook.before_train(runner)
    for error in (2.0, 1.0):
        hook.after_val_epoch(runner, dict(error=error))
        hook.after_val(runner)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['best_error_epoch_0.pth']


def test_the_best_checkpoint_of_a_moved_work_dir(runner, tmp_path):
    """What it replaces is looked for there, not where it was."""
    old, new = tmp_path / 'old', tmp_path / 'new'
    for folder in (old, new):
        folder.mkdir()
        (folder / 'best_error_iter_0.pth').touch()
    runner.work_dir, runner.iter = str(new), 1
    runner.message_hub.update_info('best_ckpt', str(old / 'best_error_iter_0.pth'))
    hook = AtomicCheckpointHook(interval=-1, by_epoch=False, save_best='error', rule='less')
    hook.before_train(runner)
    hook.after_val_epoch(runner, dict(error=0.0))
    hook.after_val(runner)
    assert [path.name for path in new.glob('best*')] == ['best_error_iter_1.pth']
    assert [path.name for path in old.iterdir()] == ['best_error_iter_0.pth']


@pytest.mark.parametrize('settings', [dict(interval='often'), dict(max_keep_ckpts='two')])
def test_settings_that_are_not_integers(settings):
    [name] = settings
    with pytest.raises(ConfigError, match=name):
        AtomicCheckpointHook(**settings)


def test_folders_of_shards_are_removed(runner, tmp_path):
    hook = AtomicCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=1)
    hook.before_train(runner)
    (tmp_path / 'iter_1.pth').mkdir()
    (tmp_path / 'iter_1.pth/rank0.pth').touch()
    runner.save_checkpoint = lambda *args, **settings: None
    for step in (1, 2):
        hook._save_checkpoint_with_step(runner, step, {})
    assert not (tmp_path / 'iter_1.pth').exists()


def test_the_same_step_twice_counts_once(runner):
    hook = AtomicCheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=2)
    hook.before_train(runner)
    for step in (1, 2, 2, 3):
        hook._save_checkpoint_with_step(runner, step, {})
    assert runner.there[-1] == ['iter_1.pth', 'iter_2.pth', 'iter_3.pth']
    assert list(hook.keep_ckpt_ids) == [2, 3]


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_nan_and_infinite_weights_are_not_saved(runner, tmp_path, value):
    hook = AtomicCheckpointHook(interval=1, by_epoch=False)
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    runner.iter = 1
    nn.init.constant_(runner.model.bias, value)
    with pytest.raises(UserError, match=r'iteration 2 \(bias\).*iter_1\.pth'):
        hook.after_train_iter(runner, 1)
    assert runner.there == [['iter_1.pth']]


def test_gradients_of_an_accumulation(runner):
    hook, checkpoint = AtomicCheckpointHook(interval=1, by_epoch=False), dict(meta={})
    runner.save_checkpoint = lambda *args, **settings: hook.before_save_checkpoint(
        runner, checkpoint
    )
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    assert 'accumulated_gradients' not in checkpoint
    runner.model.bias.grad = torch.tensor([3.0])
    hook.after_train_iter(runner, 0)
    runner.model.bias.grad = None
    hook.after_load_checkpoint(runner, dict(checkpoint))
    assert runner.model.bias.grad == 3.0
    assert runner.model.weight.grad is None
    runner.model.bias.grad = None
    checkpoint['accumulated_gradients'] *= 2  # of two processes
    hook.after_load_checkpoint(runner, checkpoint)
    assert runner.model.bias.grad is None


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'new/iter_1.pth'
    AtomicBackend().put(b'old', path)
    monkeypatch.setattr(os, 'fsync', lambda _: os.write(-1, b''))  # bad file descriptor
    with pytest.raises(UserError, match=r'iter_1.pth cannot be written \(Bad file descriptor\)'):
        AtomicBackend().put(b'new', path)
    assert [p.name for p in path.parent.iterdir()] == ['iter_1.pth']
    assert path.read_bytes() == b'old'


def test_other_storages_are_unchanged():
    assert AtomicCheckpointHook().backend_args == dict(backend=BACKEND)
    assert issubclass(AtomicBackend, LocalBackend)
    assert AtomicCheckpointHook(out_dir='s3://bucket').backend_args is None
    settings = dict(backend='petrel')
    assert AtomicCheckpointHook(backend_args=settings).backend_args == settings


@float16_on_cpu
def test_mmengine_itself_restores_the_loss_scale(monkeypatch):
    """Of mixed precision on GPUs, with PyTorch's scaler for the CPU in place of theirs."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper as amp

    monkeypatch.setattr(amp, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    for name in ('is_cuda_available', 'is_npu_available', 'is_mlu_available', 'is_musa_available'):
        monkeypatch.setattr(amp, name, lambda name=name: name == 'is_cuda_available', raising=False)

    def build(scale):
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        return weight, amp.AmpOptimWrapper(loss_scale=scale, optimizer=optimizer)

    weight, wrapper = build('dynamic')
    wrapper.update_params((weight * float('inf')).sum())
    scale = wrapper.loss_scaler.get_scale()
    assert scale == 2.0**15 and weight.item() == 1  # halved, and the step left out
    _, resumed = build('dynamic')
    resumed.load_state_dict(wrapper.state_dict())
    assert resumed.loss_scaler.get_scale() == scale
