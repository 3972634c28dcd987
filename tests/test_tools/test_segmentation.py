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


def test_test_with_every_flag(run, options, tmp_path):
    run(
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', *options
    )  # fmt: skip
    test = (sys.executable, 'tools/test.py', CONFIG, tmp_path / 'iter_2.pth')
    out = run(
        *test, '--work-dir', tmp_path, '--out', tmp_path / 'predictions.pkl',
        '--show-dir', tmp_path / 'drawn', '--cfg-options', *options,
    ).stdout  # fmt: skip
    assert 'mIoU' in out
    with open(tmp_path / 'predictions.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 3
    assert list((tmp_path / 'drawn').rglob('*.png'))

    tta = run(*test, '--work-dir', tmp_path, '--tta', '--cfg-options', *options).stdout
    assert re.search(r'Iter\(test\).*mIoU', tta)


def test_missing_labels_are_named(run, options, tmp_path):
    result = run(
        sys.executable, 'tools/train.py', 'configs/upernet/focalnet_t_160k_ade20k.py',
        '--work-dir', tmp_path / 'work', '--cfg-options',
        'train_dataloader.dataset.data_root=data/none', code=2,
    )  # fmt: skip
    assert 'data/none/images/training is missing' in result.stderr
    assert not (tmp_path / 'work').exists()


def test_labels_without_a_class_stop_the_run(run, options, tmp_path):
    fewer = [
        'model.decode_head.num_classes=4',
        'model.auxiliary_head.num_classes=4',
        *(
            f'{split}_dataloader.dataset.metainfo.{setting}'
            for split in ('train', 'val')
            for setting in ('classes=("circle","square","triangle","star")', 'palette=[]')
        ),
    ]
    result = run(
        sys.executable, 'tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', *options,
        *fewer, code=2,
    )  # fmt: skip
    assert re.search(r'train.py: .*\.png holds the label [567], .* 4 classes', result.stderr)
    assert 'Traceback' not in result.stderr
