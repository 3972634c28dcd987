"""Trainings that are killed at any moment and resumed end bit for bit like uninterrupted ones."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from forked_tools import (
    ROOT,
    assert_same,
    children,
    end,
    free_port,
    kill,
    losses,
    start_training,
    start_two_trainings,
    state,
    wait_for,
)
from stacks import ops_in_pytorch

CONFIG = 'configs/demo/mask_rcnn.py'
KILLS = 20  # of the slow test, for each kind of training
ITERATIONS = 8
EVERYTHING = [
    'default_hooks.ema.type=EMAHook',
    'default_hooks.ema.momentum=0.1',
    'optim_wrapper.accumulative_counts=3',
    'default_hooks.checkpoint.save_best=coco/bbox_mAP',
    'default_hooks.checkpoint.rule=greater',
]
KINDS = {
    'plain': ([], []),
    'everything': (['--amp'], EVERYTHING),
    'workers': ([], ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']),
}


@pytest.fixture(scope='module')
def options(tiny_options):
    """Eight iterations, a checkpoint after every second and a validation after every fourth."""
    return [
        *tiny_options,
        f'train_cfg.max_iters={ITERATIONS}',
        'train_cfg.val_interval=4',
        'model.backbone.drop_path_rate=0.3',
        'model.backbone.depths=[1,1,1,1]',
        'default_hooks.checkpoint.max_keep_ckpts=2',
    ]


@pytest.fixture(scope='module')
def uninterrupted(options, tmp_path_factory):
    """A function that trains a kind of run without interruption, once; returns the work dir."""
    done = {}

    def _uninterrupted(kind):
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp('uninterrupted') / kind
            flags, extra = KINDS[kind]
            run = start_training(CONFIG, done[kind], *flags, options=[*options, *extra])
            assert end(run) == 0, log(done[kind])
        return done[kind]

    return _uninterrupted


def compare(one, other):
    assert_same(losses(one), losses(other))
    last = f'iter_{ITERATIONS}.pth'
    assert_same(state(one / last), state(other / last))
    assert files(one) == files(other)


def files(work_dir):
    """Names of the checkpoints, also of partly written ones."""
    return sorted(path.name for path in work_dir.iterdir() if '.pth' in path.name)


def log(work_dir):
    return Path(f'{work_dir}.log').read_text()


def error_message(work_dir):
    """The only error message of a run, which may have been started with --resume."""
    lines = re.findall('^train.py: .*$', log(work_dir), re.MULTILINE)
    (line,) = [line for line in lines if 'no checkpoint to resume' not in line]
    return line


def die_before_rename(name):
    """Kill the run when the checkpoint of a name is on disk under its temporary name."""

    def replace(source, target, replace=os.replace):
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace


def die_while_removing():
    """Kill the run when it removes a checkpoint, after the next one was written."""

    def remove(path):
        os.kill(os.getpid(), signal.SIGKILL)

    os.remove = remove


def limit_files():
    """Limit files to 100 kB, less than a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def break_a_loss():
    """Make a loss of the sixth iteration NaN, in the process of the highest rank."""
    from mmengine.logging import MessageHub
    from mmengine.model import BaseModel

    def parse_losses(self, losses, parse=BaseModel.parse_losses):
        iteration = MessageHub.get_current_instance().get_info('iter')
        if iteration == 5 and os.environ.get('RANK', '1') == '1':
            losses['loss_mask'] = losses['loss_mask'] * float('nan')
        return parse(self, losses)

    BaseModel.parse_losses = parse_losses


@ops_in_pytorch
def test_killed_while_writing_and_removing_then_damaged(options, uninterrupted, tmp_path):
    flags, extra = KINDS['everything']
    run = dict(options=[*options, *extra])
    work_dir = tmp_path / 'killed'
    writing = partial(die_before_rename, 'iter_4.pth')
    assert kill(start_training(CONFIG, work_dir, *flags, patch=writing, **run))
    part, first = files(work_dir)
    assert part.startswith('.partial-') and first == 'iter_2.pth'
    removing = die_while_removing
    assert kill(start_training(CONFIG, work_dir, *flags, '--resume', patch=removing, **run))
    newest = work_dir / 'iter_6.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = start_training(CONFIG, work_dir, *flags, '--resume', **run)
    assert end(resumed) == 0, log(work_dir)
    assert re.search('iter_6.pth .*iter_4.pth', log(work_dir))  # a warning that names both
    compare(uninterrupted('everything'), work_dir)


def test_a_loss_that_is_nan(options, tmp_path):
    work_dir = tmp_path / 'nan'
    run = start_training(CONFIG, work_dir, patch=break_a_loss, options=options)
    assert end(run) == 2, log(work_dir)
    for token in ('loss_mask', 'iteration 6', '.jpg', 'iter_4.pth'):
        assert token in error_message(work_dir)
    assert files(work_dir) == ['iter_2.pth', 'iter_4.pth']


@pytest.fixture
def full_disk(tmp_path, uninterrupted):
    """A small disk and None, or where none can be mounted, a folder and a limit to set."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    size = 2.5 * (uninterrupted('plain') / 'iter_8.pth').stat().st_size
    command = ['mount', '-t', 'tmpfs', '-o', f'size={int(size)}', 'tmpfs', str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    yield folder, None if mounted else limit_files
    if mounted:
        subprocess.run(['umount', str(folder)], check=True)


def test_a_full_disk(options, uninterrupted, tmp_path, full_disk):
    folder, limit = full_disk
    work_dir = folder / 'run'
    if limit:  # the first checkpoint must be there before
        writing = partial(die_before_rename, 'iter_4.pth')
        assert kill(start_training(CONFIG, work_dir, patch=writing, options=options))
    run = start_training(CONFIG, work_dir, '--resume', patch=limit, options=options)
    assert end(run) == 2, log(work_dir)
    assert re.search(r'iter_\d.pth', error_message(work_dir))
    saved = files(work_dir)
    assert saved and all(re.fullmatch(r'iter_\d.pth', name) for name in saved)
    assert torch.load(work_dir / saved[-1], weights_only=False)['meta']['iter'] == int(saved[-1][5])
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / saved[-1])
    # With room for the checkpoints to keep, the run can be resumed.
    room = tmp_path / 'room'
    subprocess.run(['cp', '-r', work_dir, room], check=True)
    (room / 'last_checkpoint').write_text(str(room / saved[-1]))
    assert end(start_training(CONFIG, room, '--resume', options=options)) == 0, log(room)
    assert_same(state(uninterrupted('plain') / 'iter_8.pth'), state(room / 'iter_8.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_killed_at_random(options, uninterrupted, tmp_path, kind):
    """Kill runs after they have set up; when one has ended by itself, start another."""
    flags, extra = KINDS[kind]
    run = dict(options=[*options, *extra])
    clock = start_training(CONFIG, tmp_path / 'clock', *flags, **run)
    wait_for(tmp_path / 'clock', 'Checkpoints will be saved')
    began = time.monotonic()
    end(clock)
    lasts = time.monotonic() - began
    dice = random.Random(kind)
    kills, rounds = 0, 0
    while kills < KILLS:
        work_dir = tmp_path / f'round_{rounds}'
        killed = True
        while killed:
            log_file = Path(f'{work_dir}.log')
            log_file.unlink(missing_ok=True)
            process = start_training(CONFIG, work_dir, *flags, '--resume', **run)
            wait_for(work_dir, 'Checkpoints will be saved')
            killed = kill(process, dice.uniform(0, lasts) if kills < KILLS else None)
            kills += killed
        assert process.exitcode == 0, log(work_dir)
        compare(uninterrupted(kind), work_dir)
        rounds += 1
    print(f'{kind}: {kills} kills in {rounds} runs')


@pytest.mark.slow
def test_killed_between_epochs(tiny_options, tmp_path):
    """A recipe of the paper: epochs, images grouped by shape, augmented by two workers."""
    config = 'configs/mask_rcnn/focalnet_t_1x.py'
    classes = 'metainfo.classes=("circle","square","triangle","star")'
    augmentation = 'train_dataloader.dataset.pipeline.4.transforms'
    options = [
        *(option for option in tiny_options if 'train_cfg' not in option),
        'model.backbone.init_cfg=None',
        'model.backbone.depths=[1,1,1,1]',
        'model.roi_head.bbox_head.num_classes=4',
        'model.roi_head.mask_head.num_classes=4',
        *(f'{split}_dataloader.dataset.{classes}' for split in ('train', 'val', 'test')),
        f'{augmentation}.0.0.scales=[(64,96),(96,128)]',
        f'{augmentation}.1.0.scales=[(80,128),(96,128)]',
        f'{augmentation}.1.1.crop_size=(48,64)',
        f'{augmentation}.1.2.scales=[(64,96),(96,128)]',
        'default_hooks.checkpoint.interval=1',
        'train_cfg.max_epochs=3',
        'randomness.seed=1',
    ]
    whole, work_dir = tmp_path / 'whole', tmp_path / 'killed'
    assert end(start_training(config, whole, options=options)) == 0, log(whole)
    writing = partial(die_before_rename, 'epoch_2.pth')
    assert kill(start_training(config, work_dir, patch=writing, options=options))
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'epoch_1.pth')
    # The seed comes from the checkpoint.
    assert end(start_training(config, work_dir, '--resume', options=options[:-1])) == 0, log(
        work_dir
    )
    assert_same(losses(whole), losses(work_dir))
    assert_same(state(whole / 'epoch_3.pth'), state(work_dir / 'epoch_3.pth'))


@pytest.mark.slow
def test_a_nan_loss_of_one_of_two_processes(options, tmp_path):
    work_dir = tmp_path / 'nan'
    both = start_two_trainings(CONFIG, work_dir, patch=break_a_loss, options=options)
    assert [end(process) for process in both] == [2, 2], log(work_dir)
    for token in ('loss_mask', 'iteration 6', 'process 1'):
        assert token in error_message(work_dir)
    assert files(work_dir) == ['iter_2.pth', 'iter_4.pth']


@pytest.mark.slow
def test_one_of_two_processes_killed(options, tmp_path):
    """With tools/dist_train.sh."""
    whole, work_dir = tmp_path / 'whole', tmp_path / 'killed'
    settings = dict(env={**os.environ, 'PYTHON': sys.executable, 'PORT': free_port()}, cwd=ROOT)

    def launch(folder, *flags):
        command = ['tools/dist_train.sh', CONFIG, '2', '--work-dir', folder, *flags]
        file = open(f'{folder}.log', 'a')  # noqa: SIM115
        return subprocess.Popen(
            [*command, '--cfg-options', *options], stdout=file, stderr=file, **settings
        )

    assert launch(whole).wait(300) == 0, log(whole)
    process = launch(work_dir)
    wait_for(work_dir, f'Iter(train) [4/{ITERATIONS}]')
    os.kill(_of_rank(1, process.pid), signal.SIGKILL)
    assert process.wait(60) != 0
    assert re.search(r'exitcode\s*: -9', log(work_dir))
    assert not (work_dir / 'iter_8.pth').exists()
    assert launch(work_dir, '--resume').wait(300) == 0, log(work_dir)
    compare(whole, work_dir)


def _of_rank(rank, launcher):
    """The child of a launcher that has a rank."""
    for child in children(launcher):
        if f'RANK={rank}'.encode() in Path(f'/proc/{child}/environ').read_bytes().split(b'\0'):
            return child
    raise AssertionError(f'no process of rank {rank}')
