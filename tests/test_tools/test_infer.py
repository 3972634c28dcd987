"""tools/infer.py from the command line."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

CONFIG = Path(__file__).resolve().parents[2] / 'configs/demo/mask_rcnn.py'
OPTIONS = ['model.backbone.embed_dim=8', 'model.neck.in_channels=[8,16,32,64]']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Random weights."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({'model.backbone.embed_dim': 8, 'model.neck.in_channels': [8, 16, 32, 64]})
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


@pytest.fixture
def infer(run, checkpoint):
    def _infer(*arguments, code=0):
        return run(
            sys.executable, 'tools/infer.py', *arguments, '--cfg-options', *OPTIONS, code=code
        )

    return _infer


def test_good_pictures_are_predicted_and_bad_ones_named(infer, checkpoint, shapes, tmp_path):
    photos, out = tmp_path / 'photos', tmp_path / 'out'
    photos.mkdir()
    Image.new('RGB', (32, 32)).save(photos / 'good.png')
    (photos / 'bad.jpg').write_text('text')
    result = infer(
        photos, f'{shapes}/coco/val2017/*.jpg', f'{tmp_path}/*.gif', CONFIG, checkpoint,
        '--out', out, '--batch-size', 2, '--score-thr', 0, code=1,
    )  # fmt: skip
    assert '4 predictions' in result.stdout
    assert '5/5' in result.stdout  # of the bar
    sentences = [line for line in result.stderr.splitlines() if line.startswith('infer.py: ')]
    assert len(sentences) == 2
    assert 'bad.jpg is no picture' in result.stderr
    assert "No file matches '" in result.stderr
    assert len(list((out / 'vis').iterdir())) == 4
    images = {entry['image_id'] for entry in json.loads((out / 'predictions.json').read_text())}
    assert images == {1, 2, 3, 4}


def test_code_0_if_all_went_well(infer, checkpoint, tmp_path):
    # 12 bits stored in 16.
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(tmp_path / 'good.png')
    result = infer(tmp_path / 'good.png', CONFIG, checkpoint, '--out', tmp_path / 'out')
    assert (tmp_path / 'out/vis/good.png').is_file()
    assert 'good.png has uint16 values of at most 4000' in result.stderr


@pytest.mark.parametrize(
    ('images', 'flags', 'message'),
    [
        ('empty', (), 'The folder .*empty holds no pictures'),
        ('good.jpg', ('--out', 'README.md'), '--out README.md cannot be used'),
        ('vis/good.jpg', (), 'lies where --out'),
        ('good.jpg', ('--score-thr', 'nan'), 'nan is no score'),
        ('good.jpg', ('--score-thr', '30'), '30 is no score'),
    ],
)
def test_mistakes_end_in_one_sentence(run, checkpoint, tmp_path, images, flags, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'vis').mkdir()
    for name in ('good.jpg', 'vis/good.jpg'):
        Image.new('RGB', (32, 32)).save(tmp_path / name)
    result = run(
        sys.executable, 'tools/infer.py', tmp_path / images, CONFIG, checkpoint,
        '--out', tmp_path, *flags, '--cfg-options', *OPTIONS, code=2,
    )  # fmt: skip
    assert re.search(message, result.stderr)
    assert 'Traceback' not in result.stderr
