"""Training leaves out a few unreadable files, and stops if there are many."""

import re
import shutil

import narrow_models
import pytest
from forked_tools import ROOT

from mmfocalnet.datasets import make_shapes


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 24, 3, size=64)


@pytest.fixture
def data(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'data/shapes')


def damage(folder, *indices):
    """Cut files in half; returns their paths."""
    paths = [sorted(folder.iterdir())[index] for index in indices]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return paths


@pytest.fixture
def train(data, forked_tool, tmp_path):
    """Train a narrow model for one epoch of the 24 images; returns what was printed."""

    def _train(config, *options, code=0):
        result = forked_tool(
            'train', ROOT / f'configs/demo/{config}.py', '--cfg-options',
            'train_dataloader.batch_size=12', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
            'model.backbone.depths=[1,1,1,1]', *options,
            cwd=tmp_path, code=code,
        )  # fmt: skip
        return result.stdout + result.stderr

    return _train


@pytest.mark.parametrize('folder', ['images', 'annotations'])
def test_a_damaged_file_is_logged_once_and_left_out(data, train, folder):
    (path,) = damage(data / f'ade/{folder}/training', 7)
    # Two epochs: in the second one the file is known.
    options = ['train_dataloader.num_workers=2', 'train_cfg.max_iters=4']
    out = train('upernet', *narrow_models.UPERNET, *options)
    (line,) = [line for line in out.splitlines() if path.name in line]
    assert 'left out of training' in line
    assert re.search(r'1 unreadable files? .*left out', out)
    assert 'mIoU' in out


@pytest.mark.parametrize('workers', [2, 0])
def test_many_damaged_files_stop_the_training(data, train, workers):
    damage(data / 'coco/train2017', *range(0, 24, 2))
    options = [
        f'train_dataloader.num_workers={workers}',
        f'train_dataloader.persistent_workers={bool(workers)}',
    ]
    out = train('mask_rcnn', *narrow_models.MASK_RCNN, *options, code=2)
    assert 'train.py: At least 2 of 24 training samples' in out
    assert 'Traceback' not in out


@pytest.mark.parametrize('workers', [1, 0])
def test_a_damaged_file_stops_the_validation(data, train, workers):
    (path,) = damage(data / 'ade/annotations/validation', 0)
    options = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1']
    out = train(
        'upernet', *narrow_models.UPERNET, *options, f'val_dataloader.num_workers={workers}', code=2
    )
    assert f'train.py: {path.relative_to(data.parents[1])} is damaged' in out
    assert 'Traceback' not in out
