"""tools/browse_dataset.py draws samples as the pipeline makes them."""

import shutil
from pathlib import Path

import cv2
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


def test_pictures_are_written(browse, home):
    _, out, _ = browse('mask_rcnn', '--number', 4)
    assert '4 images: work_dirs/browse_dataset/mask_rcnn' in out
    pictures = read(home / 'work_dirs/browse_dataset/mask_rcnn')
    assert len(pictures) == 4
    assert {picture.shape for picture in pictures.values()} == {(64, 64, 3)}


@pytest.mark.parametrize('config', ['mask_rcnn', 'mask2former', 'upernet'])
def test_labels_are_drawn_where_they_belong(browse, home, config):
    code, _, error = browse(config, '--split', 'val', '--out', 'one')
    assert code == 0, error
    ade = home / 'data/shapes/ade'
    pictures = list(read(home / 'one').values())
    assert len(pictures) == 3
    names = sorted(path.stem for path in (ade / 'images/validation').iterdir())
    for name, picture in zip(names, pictures, strict=True):
        source = cv2.imread(str(ade / f'images/validation/{name}.jpg'))
        labels = cv2.imread(str(ade / f'annotations/validation/{name}.png'), -1)
        colours = np.array(METAINFO['semantic']['palette'])[labels - 1][..., ::-1]
        painted = 0.8 * colours + 0.2 * source
        ground = labels > 4
        expected = source.astype(int) if config == 'mask_rcnn' else painted
        # Text and boxes cover some of it.
        assert np.median(np.abs(picture - expected)[ground]) < 8
        objects = np.abs(picture.astype(int) - source).max(axis=2)[~ground]
        assert np.median(objects) > 8
        if config == 'upernet':
            assert np.median(np.abs(picture - painted)[~ground]) < 8


def test_the_seed_decides(browse, home):
    for seed, out in ((0, 'a'), (0, 'b'), (3, 'c')):
        assert browse('mask_rcnn', '--out', out, '--seed', str(seed))[0] == 0
    first, again, other = (read(home / out) for out in 'abc')
    assert all((again[name] == first[name]).all() for name in first)
    assert any((other[name] != first[name]).any() for name in first)


def test_a_damaged_image(browse, home, shapes):
    (home / 'data/shapes').unlink()
    shutil.copytree(shapes, home / 'data/shapes')
    for split, name in (('train', '000000000001.jpg'), ('val', '000000100001.jpg')):
        (home / f'data/shapes/coco/{split}2017' / name).write_bytes(b'text')
    code, out, error = browse('mask_rcnn')
    assert code == 0 and '6 images' in out
    code, _, error = browse('mask_rcnn', '--split', 'val')
    assert code == 2
    assert '000000100001.jpg is damaged or not an image' in error


@pytest.mark.parametrize(
    ('flags', 'sentence'),
    [
        (['--cfg-options', 'visualizer=None'], 'needs train_dataloader and visualizer'),
        (['--cfg-options', 'train_dataloader.dataset.ann_file=none'], 'none is missing'),
        (['--output-dir', 'data/file'], '--output-dir data/file cannot be used'),
        (['--number', '0'], '--number: 0 is not'),
    ],
)
def test_mistakes_end_with_2(browse, home, flags, sentence):
    (home / 'data/file').touch()
    code, _, error = browse('mask_rcnn', *flags)
    assert code == 2
    assert sentence in error
