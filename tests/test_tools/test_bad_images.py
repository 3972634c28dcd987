"""A training goes on without the few files that cannot be read, and stops where they are many."""

import shutil
import sys

import pytest

from mmfocalnet.datasets import make_shapes


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 120, 3, size=64)


@pytest.fixture
def data(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'shapes')


def damage(folder, numbers):
    """Cut files in half; returns their paths."""
    paths = [sorted(folder.iterdir())[number] for number in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return paths


@pytest.fixture
def train_on(data, run, tmp_path):
    """Train a narrow model for one round of the 120 images."""

    def _train(config, *options, code=0):
        kind = 'coco/' if config != 'upernet' else 'ade'
        options = [
            *(f'{split}_dataloader.dataset.data_root={data}/{kind}' for split in ('train', 'val')),
            'train_dataloader.batch_size=12',
            'train_cfg.max_iters=10',
            'train_cfg.val_interval=10',
            'default_hooks.checkpoint.interval=10',
            'model.backbone.embed_dim=8',
            *options,
        ]
        result = run(
            sys.executable, 'tools/train.py', f'configs/demo/{config}.py',
            '--work-dir', tmp_path / 'work', '--cfg-options', *options, code=code,
        )  # fmt: skip
        return result.stdout + result.stderr

    def mask_rcnn(*options, code=0):
        ann_file = f'{data}/coco/annotations/instances_val2017.json'
        return _train(
            'mask_rcnn', 'model.neck.in_channels=[8,16,32,64]',
            f'val_evaluator.ann_file={ann_file}', *options, code=code,
        )  # fmt: skip

    def upernet(*options, code=0):
        return _train(
            'upernet', 'model.decode_head.in_channels=[8,16,32,64]',
            'model.auxiliary_head.in_channels=32', *options, code=code,
        )  # fmt: skip

    return {'mask_rcnn': mask_rcnn, 'upernet': upernet}


def test_one_damaged_image_is_named_once_and_left_out(data, train_on):
    (path,) = damage(data / 'ade/images/training', [7])
    # Twice round, so that the second time it is known.
    out = train_on['upernet']('train_dataloader.num_workers=2', 'train_cfg.max_iters=20')
    assert out.count(path.name) == 1
    assert f'{path} is damaged or not an image: left out of training.' in out
    assert '1 unreadable files were left out of this training' in out
    assert 'mIoU' in out


@pytest.mark.parametrize('workers', [2, pytest.param(0, marks=pytest.mark.slow)])
def test_six_of_120_stop_it_with_one_sentence(data, train_on, workers):
    damage(data / 'coco/train2017', range(0, 120, 20))
    out = train_on['mask_rcnn'](f'train_dataloader.num_workers={workers}', code=2)
    assert 'train.py: 2 files of the 120 training samples cannot be read, more than 1%' in out
    assert 'python tools/check_dataset.py CONFIG' in out
    assert 'Traceback' not in out


@pytest.mark.slow
def test_label_maps_are_left_out_as_well(data, train_on):
    (path,) = damage(data / 'ade/annotations/training', [3])
    out = train_on['upernet']()
    assert out.count(path.name) == 1
    assert 'left out of training' in out and 'mIoU' in out


@pytest.mark.slow
@pytest.mark.parametrize('workers', [1, 0])
def test_a_damaged_file_of_validation_is_named(data, train_on, workers):
    (path,) = damage(data / 'ade/annotations/validation', [0])
    out = train_on['upernet'](
        'train_cfg.max_iters=1', 'train_cfg.val_interval=1',
        f'val_dataloader.num_workers={workers}', code=2,
    )  # fmt: skip
    assert f'train.py: {path} is damaged or not an image: repair it' in out
    assert 'Traceback' not in out
