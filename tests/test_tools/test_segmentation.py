"""The same tools on an mmseg config."""

import pickle
import re
import sys

import pytest

CONFIG = 'configs/demo/upernet.py'


@pytest.fixture(scope='session')
def options(shapes):
    root = f'{shapes}/ade'
    return [
        *(f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'val', 'test')),
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
        'model.backbone.embed_dim=8',
        'model.decode_head.in_channels=[8,16,32,64]',
        'model.auxiliary_head.in_channels=32',
    ]


def test_train_resume_and_test_with_every_flag(run, options, tmp_path):
    train = (sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path)
    first = run(*train, '--amp', '--auto-scale-lr', '--cfg-options', *options).stdout
    assert re.search(r'Iter\(val\).*mIoU', first)
    resumed = run(*train, '--resume', '--cfg-options', *options, 'train_cfg.max_iters=3').stdout
    assert 'Iter(train) [3/3]' in resumed

    out = run(
        sys.executable, 'tools/test.py', CONFIG, tmp_path / 'iter_3.pth', '--work-dir', tmp_path,
        '--out', tmp_path / 'predictions.pkl', '--show-dir', tmp_path / 'drawn',
        '--cfg-options', *options,
    ).stdout  # fmt: skip
    assert 'mIoU' in out
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 3
    assert list((tmp_path / 'drawn').rglob('*.png'))

    tta = run(
        sys.executable, 'tools/test.py', CONFIG, tmp_path / 'iter_3.pth', '--work-dir', tmp_path,
        '--tta', '--cfg-options', *options,
    ).stdout  # fmt: skip
    assert re.search(r'Iter\(test\).*mIoU', tta)


def test_two_processes(run, options, tmp_path):
    out = run(
        'tools/dist_train.sh', CONFIG, 2, '--work-dir', tmp_path, '--cfg-options', *options,
        env={'PORT': '29613'},
    ).stdout  # fmt: skip
    assert out.count('Saving checkpoint at 2 iterations') == 1
    assert re.search(r'Iter\(val\).*mIoU', out)


def test_missing_labels_are_named(run, options, tmp_path):
    result = run(
        sys.executable, 'tools/train.py', 'configs/upernet/focalnet_t_160k_ade20k.py',
        '--work-dir', tmp_path / 'work', '--cfg-options',
        'train_dataloader.dataset.data_root=data/none', code=2,
    )  # fmt: skip
    assert 'data/none/images/training is missing' in result.stderr
    assert not (tmp_path / 'work').exists()
