"""tools/infer.py from the command line."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def model(trained_run, trained):
    """Config and checkpoint."""
    return trained_run / 'mask_rcnn.py', trained


def test_valid_images_are_predicted_and_invalid_ones_reported(tool, model, shapes, tmp_path):
    photos, out = tmp_path / 'photos', tmp_path / 'out'
    photos.mkdir()
    Image.new('RGB', (32, 32)).save(photos / 'good.png')
    (photos / 'bad.jpg').write_text('text')
    code, stdout, stderr = tool(
        'infer', photos, f'{shapes}/coco/val2017/*.jpg', f'{tmp_path}/*.gif', *model,
        '--out', out, '--batch-size', 2, '--score-thr', 0,
    )  # fmt: skip
    assert code == 1
    assert '4 predictions' in stdout.splitlines()  # no progress bar without a terminal
    errors = [line for line in stderr.splitlines() if line.startswith('infer.py: ')]
    assert len(errors) == 2
    assert any('bad.jpg' in line for line in errors) and any('*.gif' in line for line in errors)
    assert len(list((out / 'vis').iterdir())) == 4
    images = {entry['image_id'] for entry in json.loads((out / 'predictions.json').read_text())}
    assert images == {1, 2, 3, 4}


def test_the_exit_code_is_0_if_nothing_was_skipped(tool, model, tmp_path):
    # 12 bits stored in 16.
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(tmp_path / 'good.png')
    with pytest.warns(UserWarning, match=r'good\.png.*4000'):
        code, *_ = tool('infer', tmp_path / 'good.png', *model, '--out', tmp_path / 'out')
    assert code == 0 and (tmp_path / 'out/vis/good.png').is_file()


@pytest.mark.parametrize(
    ('images', 'flags', 'token'),
    [
        ('empty', (), 'empty'),
        ('good.jpg', ('--out', 'README.md'), '--out README.md'),
        ('vis/good.jpg', (), 'vis/good.jpg'),
        ('good.jpg', ('--score-thr', 'nan'), 'nan'),
        ('good.jpg', ('--score-thr', '30'), '30'),
    ],
)
def test_user_errors(tool, tmp_path, images, flags, token):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'vis').mkdir()
    for name in ('good.jpg', 'vis/good.jpg'):
        Image.new('RGB', (32, 32)).save(tmp_path / name)
    code, _, stderr = tool(
        'infer', tmp_path / images, 'config.py', 'none.pth', '--out', tmp_path, *flags
    )
    assert code == 2 and token in stderr and 'Traceback' not in stderr


def test_nothing_is_written_without_a_model(tool, tmp_path):
    Image.new('RGB', (32, 32)).save(tmp_path / 'good.jpg')
    arguments = [
        tmp_path / 'good.jpg',
        'configs/demo/mask_rcnn.py',
        'none.pth',
        '--out',
        tmp_path / 'out',
    ]
    code, _, stderr = tool('infer', *arguments)
    assert code == 2 and 'none.pth' in stderr
    assert not (tmp_path / 'out').exists()
