"""tools/browse_dataset.py draws samples after the pipeline."""

import shutil
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from mmfocalnet.datasets import METAINFO

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def browse(home, monkeypatch, tool):
    """Run the tool in this process; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(home)

    def _browse(config, *flags):
        path = ROOT / f'configs/demo/{config}.py'
        return tool('browse_dataset', path, '--not-show', *flags)

    return _browse


def read(folder):
    return {path.name: cv2.imread(str(path)) for path in sorted(Path(folder).iterdir())}


def test_images_are_written(browse, home):
    _, out, _ = browse('mask_rcnn', '--number', 4)
    assert '4 images: work_dirs/browse_dataset/mask_rcnn' in out
    images = read(home / 'work_dirs/browse_dataset/mask_rcnn')
    assert len(images) == 4
    assert {image.shape for image in images.values()} == {(64, 64, 3)}


@pytest.mark.parametrize('config', ['mask_rcnn', 'mask2former', 'upernet'])
def test_labels_are_drawn_at_their_pixels(browse, home, config):
    if config != 'upernet' and matplotlib.__version_info__ < (3, 11):
        pytest.skip('MMEngine shifts parts of the image by a pixel with this matplotlib')
    code, _, error = browse(config, '--split', 'val', '--out', 'one')
    assert code == 0, error
    ade = home / 'data/shapes/ade'
    images = list(read(home / 'one').values())
    assert len(images) == 3
    names = sorted(path.stem for path in (ade / 'images/validation').iterdir())
    for name, image in zip(names, images, strict=True):
        source = cv2.imread(str(ade / f'images/validation/{name}.jpg'))
        labels = cv2.imread(str(ade / f'annotations/validation/{name}.png'), -1)
        colours = np.array(METAINFO['semantic']['palette'])[labels - 1][..., ::-1]
        painted = 0.8 * colours + 0.2 * source
        stuff = labels > 4
        expected = source.astype(int) if config == 'mask_rcnn' else painted
        # Text and boxes cover some of it.
        assert np.median(np.abs(image - expected)[stuff]) < 8
        assert np.median(np.abs(image.astype(int) - source).max(axis=2)[~stuff]) > 8
        if config == 'upernet':
            assert np.median(np.abs(image - painted)[~stuff]) < 8


def test_the_seed_determines_the_images(browse, home):
    for seed, out in ((0, 'a'), (0, 'b'), (3, 'c')):
        assert browse('mask_rcnn', '--out', out, '--seed', str(seed))[0] == 0
    first, again, other = (read(home / out) for out in 'abc')
    assert all((again[name] == first[name]).all() for name in first)
    assert any((other[name] != first[name]).any() for name in first)


def test_damaged_images_are_skipped_in_training_only(browse, home, shapes):
    (home / 'data/shapes').unlink()
    shutil.copytree(shapes, home / 'data/shapes')
    for split, name in (('train', '000000000001.jpg'), ('val', '000000100001.jpg')):
        (home / f'data/shapes/coco/{split}2017' / name).write_bytes(b'text')
    code, out, error = browse('mask_rcnn')
    assert code == 0 and '6 images' in out
    code, _, error = browse('mask_rcnn', '--split', 'val')
    assert code == 2
    assert '000000100001.jpg' in error


@pytest.mark.parametrize(
    ('config', 'flags', 'token'),
    [
        ('mask_rcnn', ['--cfg-options', 'visualizer=None'], 'visualizer'),
        ('mask_rcnn', ['--cfg-options', 'train_dataloader.dataset.ann_file=none'], 'none'),
        ('mask_rcnn', ['--output-dir', 'data/file'], '--output-dir data/file'),
        ('mask_rcnn', ['--number', '0'], '--number'),
        ('classification', ['--cfg-options', 'visualizer=dict(type="Visualizer")'], 'mmseg'),
    ],
)
def test_mistakes_end_with_2(browse, home, config, flags, token):
    (home / 'data/file').touch()
    (home / 'data/shapes_crops/train').mkdir(parents=True)
    (home / 'data/shapes_crops/val').mkdir()
    code, _, error = browse(config, *flags)
    assert code == 2
    assert token in error
