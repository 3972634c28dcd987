"""The sample dataset, a narrow Mask R-CNN that trains in seconds, and ways to run tools."""

import os
import shutil
import subprocess
import sys

import forked_tools
import narrow_models
import pytest
from forked_tools import ROOT

from mmfocalnet.datasets import make_shapes

CONFIG = ROOT / 'configs/demo/mask_rcnn.py'


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """The folder of the sample dataset: six images to train with, three to validate with."""
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 6, 3, size=64)


@pytest.fixture
def home(shapes, tmp_path):
    """A folder to run in, with the sample dataset where the demos expect it."""
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
        *narrow_models.MASK_RCNN,
    ]


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory, tiny_options):
    """The work dir of a training run of the narrow model by tools/train.py. Not to be changed."""
    folder = tmp_path_factory.mktemp('trained')
    forked_tools.run(
        'train', CONFIG, '--work-dir', folder / 'work', '--cfg-options', *tiny_options,
        folder=folder,
    )  # fmt: skip
    return folder / 'work'


@pytest.fixture(scope='session')
def trained(trained_run):
    """The checkpoint of the narrow model, for ``CONFIG`` with ``tiny_options``."""
    return trained_run / 'iter_2.pth'


@pytest.fixture
def work_dir(trained_run, tmp_path):
    """A copy of ``trained_run`` that a test may change."""
    return shutil.copytree(trained_run, tmp_path / 'work')


@pytest.fixture
def forked_tool(tmp_path_factory):
    """Run a tool in a forked process, which needs no imports; assert its exit code.

    ``forked_tool('train', CONFIG, '--amp', code=0, cwd=ROOT, env={})`` returns what
    ``subprocess.run`` does, with stdout and stderr as text.
    """

    def _run(name, *arguments, **settings):
        return forked_tools.run(name, *arguments, folder=tmp_path_factory.mktemp(name), **settings)

    return _run


@pytest.fixture
def run():
    """Run a command line in a fresh process, in the project's root; assert its exit code.

    A fresh Python imports PyTorch and mmdet for seven seconds: prefer ``forked_tool``, or ``tool``
    for errors.
    """

    def _run(*command, env=None, code=0, cwd=ROOT):
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, 'PYTHON': sys.executable, **(env or {})},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
        return result

    return _run


@pytest.fixture
def train(forked_tool, tmp_path, tiny_options):
    """Run tools/train.py on the narrow model with ``tmp_path`` as work dir."""

    def _train(*flags, options=(), code=0):
        return forked_tool(
            'train', CONFIG, '--work-dir', tmp_path, *flags,
            '--cfg-options', *tiny_options, *options, code=code,
        )  # fmt: skip

    return _train
