"""The checkpoint that a run continues from, flags, and exit codes."""

import errno
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config

from mmfocalnet.cli.config_flags import use_drawing
from mmfocalnet.cli.error_handling import report_errors
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.datasets.data_checks import check_data
from mmfocalnet.errors import CheckpointError, ConfigError, DataError


def training(number):
    return dict(
        meta=dict(seed=number, epoch=0, iter=number),
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        state_dict=dict(weight=torch.ones(1000)),
    )


@pytest.fixture
def work_dir(tmp_path):
    """Four checkpoints, the newest but one marked, as if the last had been of an earlier run."""
    for number in (8, 9, 10, 11):
        torch.save(training(number), tmp_path / f'iter_{number}.pth')
    for name in ('epoch_9.pth', 'best_coco_iter_9.pth', '.partial-9-iter_9.pth', 'iter_9.log'):
        (tmp_path / name).touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_10.pth'))
    return tmp_path


def resumed(work_dir, **settings):
    cfg = Config(dict(work_dir=str(work_dir), resume=True, load_from=None, **settings))
    load_initial_checkpoint(cfg)
    return cfg


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_ema_needs_a_checkpoint_of_mmengine(tmp_path):
    torch.save({'weight': torch.ones(1)}, tmp_path / 'weights.pth')
    cfg = Config(dict(load_from=str(tmp_path / 'weights.pth'), custom_hooks=[dict(type='EMAHook')]))
    with pytest.raises(CheckpointError, match='has no state_dict'):
        load_initial_checkpoint(cfg)
    cfg.custom_hooks = []
    load_initial_checkpoint(cfg)


def test_the_last_checkpoint_is_resumed(work_dir, capsys):
    assert resumed(work_dir).load_from == str(work_dir / 'iter_10.pth')
    assert not capsys.readouterr().err


def test_nothing_saved_yet(tmp_path, capsys):
    cfg = resumed(tmp_path)
    assert cfg.load_from is None and not cfg.resume
    assert str(tmp_path) in capsys.readouterr().err


def test_damaged_and_missing_checkpoints_are_skipped(work_dir, capsys):
    damage(work_dir / 'iter_10.pth')
    (work_dir / 'iter_9.pth').unlink()
    assert resumed(work_dir).load_from == str(work_dir / 'iter_8.pth')
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert 'iter_10.pth is damaged' in said and 'iter_8.pth instead.' in said


def test_all_checkpoints_damaged(work_dir):
    for number in (8, 9, 10):
        damage(work_dir / f'iter_{number}.pth')
    with pytest.raises(CheckpointError, match=r'iter_10.pth is damaged'):
        resumed(work_dir)


def test_a_checkpoint_in_remote_storage(work_dir):
    (work_dir / 'last_checkpoint').write_text('s3://bucket/run/iter_10.pth')
    with pytest.raises(CheckpointError, match=r's3://bucket/run/iter_10\.pth'):
        resumed(work_dir)


def test_a_work_dir_that_was_moved(work_dir, tmp_path_factory):
    new = tmp_path_factory.mktemp('moved') / 'work'
    work_dir.rename(new)
    assert resumed(new).load_from == str(new / 'iter_10.pth')


def test_the_seed_of_the_checkpoint_is_used(work_dir):
    assert resumed(work_dir).randomness == dict(seed=10)
    cfg = resumed(work_dir, randomness=dict(seed=3, deterministic=True))
    assert cfg.randomness == dict(seed=10, deterministic=True)
    fresh = Config(dict(load_from=str(work_dir / 'iter_9.pth'), work_dir=str(work_dir)))
    load_initial_checkpoint(fresh)
    assert 'randomness' not in fresh


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (OSError(errno.ENOSPC, 'No space left on device', 'a.log'), 'a.log cannot be written (No'),
        (OSError(errno.EDQUOT, 'Disk quota exceeded'), 'A file cannot be written (Disk quota'),
    ],
)
def test_a_full_disk_ends_in_an_error_message(capsys, error, said):
    @report_errors
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_other_file_errors_keep_their_traceback(capsys):
    @report_errors
    def main():
        raise PermissionError(errno.EACCES, 'Permission denied', 'a.log')

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3  # 1 is for findings, as of tools/check_dataset.py
    assert 'Traceback' in (said := capsys.readouterr().err) and 'a.log' in said


def test_data_prefix_of_mmpretrain_is_a_string(tmp_path):
    (tmp_path / 'train').mkdir()
    data = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix='train')
    cfg = Config(dict(model={}, train_dataloader=dict(dataset=data)))
    check_data(cfg, ('train',))
    cfg.train_dataloader.dataset.data_prefix = 'none'
    with pytest.raises(ConfigError, match='none is missing'):
        check_data(cfg, ('train',))


def test_one_process_of_a_launch_reads_the_annotations(tmp_path, monkeypatch):
    (tmp_path / 'a.json').write_text('[]')
    data = dict(type='CocoDataset', ann_file=str(tmp_path / 'a.json'))
    cfg = Config(
        dict(model={}, default_scope='mmdet', train_dataloader=dict(dataset=data)),
        filename=__file__,
    )
    monkeypatch.setenv('RANK', '1')
    check_data(cfg, ('train',))
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(DataError, match=r'a\.json .*COCO format'):
        check_data(cfg, ('train',))


def test_drawing_with_the_hook_of_mmpretrain():
    cfg = Config(dict(default_hooks=dict(visualization=dict(type='VisualizationHook'))))
    use_drawing(cfg, Namespace(show=False, show_dir='drawn', wait_time=2))
    hook = cfg.default_hooks.visualization
    assert (hook.enable, hook.interval, hook.out_dir) == (True, 1, 'drawn')
    assert 'draw' not in hook


def test_a_fault_in_the_data_of_one_process_is_reported_by_it(monkeypatch, capsys):
    monkeypatch.setenv('LOCAL_RANK', '1')

    @report_errors
    def main():
        raise DataError('map.png holds the label 200.')

    for running, said in ((False, ''), (True, 'map.png holds the label 200.')):
        monkeypatch.setattr(torch.distributed, 'is_initialized', lambda running=running: running)
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err
        assert bool(said) is running


@pytest.mark.parametrize('local_rank', ['0', '1'])
def test_a_user_error_is_reported_by_one_slurm_task_per_node(monkeypatch, tool, local_rank):
    monkeypatch.setenv('LOCAL_RANK', 'restored after the test')
    monkeypatch.delenv('LOCAL_RANK')
    monkeypatch.setenv('SLURM_LOCALID', local_rank)
    code, _, error = tool('train', 'none.py', '--launcher', 'slurm')
    assert code == 2
    assert ('none.py' in error) is (local_rank == '0')
