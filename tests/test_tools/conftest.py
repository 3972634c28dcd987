"""A tiny generated set and a width-reduced Mask R-CNN that trains in seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfocalnet.datasets import make_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 6, 3, size=64)


@pytest.fixture
def home(shapes, tmp_path):
    """A folder to run in, with the sample set where the demos expect it."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(shapes)
    return tmp_path


@pytest.fixture(scope='session')
def tiny_options(shapes):
    """Overrides that make configs/demo/mask_rcnn.py run in seconds: two iterations of two."""
    root = f'{shapes}/coco/'
    return [
        f'train_dataloader.dataset.data_root={root}',
        f'val_dataloader.dataset.data_root={root}',
        f'test_dataloader.dataset.data_root={root}',
        f'val_evaluator.ann_file={root}annotations/instances_val2017.json',
        f'test_evaluator.ann_file={root}annotations/instances_val2017.json',
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
        'model.backbone.embed_dim=8',
        'model.neck.in_channels=[8,16,32,64]',
    ]


@pytest.fixture
def run(tmp_path):
    """Run a command line from the project's root in a work dir of its own."""

    def _run(*command, env=None, code=0, cwd=ROOT):
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, 'PYTHON': sys.executable, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
        return result

    return _run


@pytest.fixture
def train(run, tmp_path, tiny_options):
    """tools/train.py on the tiny set; returns what was printed."""

    def _train(*flags, options=(), code=0):
        return run(
            sys.executable, 'tools/train.py', 'configs/demo/mask_rcnn.py',
            '--work-dir', tmp_path, *flags, '--cfg-options', *tiny_options, *options, code=code,
        )  # fmt: skip

    return _train
