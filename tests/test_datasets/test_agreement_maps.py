"""Errors in label maps and images that check_dataset.py reports and that stop train.py."""

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from tool_runs import ROOT, TINY, assert_contains, assert_refused, assert_trains, run

from mmfocalnet.datasets.image_files import MAX_BYTES
from mmfocalnet.datasets.label_maps import check_label_maps
from mmfocalnet.errors import DataError

FOLDERS = {'train': 'training', 'val': 'validation'}
SPLITS = tuple(FOLDERS)
NARROW = [
    *TINY,
    'model.decode_head.in_channels=[8,16,32,64]',
    'model.decode_head.channels=8',
    'model.auxiliary_head.in_channels=32',
    # With these, upstream's mmseg fails on ignored pixels.
    'model.decode_head.loss_decode.class_weight=None',
    'model.auxiliary_head.loss_decode.class_weight=None',
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.batch_size=1',
]


@pytest.fixture(autouse=True)
def _time_limit():
    """Opening a FIFO blocks forever."""

    def stop(*_):
        raise TimeoutError('the test hangs')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def ade(data):
    return data / 'ade'


@pytest.fixture
def refuse(tool, configs):
    """Assert that both tools report tokens, before the run unless it must read the files."""

    def _refuse(*tokens, options=(), **settings):
        assert_refused(tool, configs['upernet'], *tokens, options=[*NARROW, *options], **settings)

    return _refuse


@pytest.fixture
def check(tool, configs):
    return lambda *options: run(tool, 'check_dataset', configs['upernet'], *options)


@pytest.fixture
def train(tool, configs):
    return lambda *options: assert_trains(
        tool, configs['upernet'], *NARROW, *options, metrics=['mIoU']
    )


@pytest.fixture
def lists(ade):
    """Overrides that list the images in files: of folders, mmseg lists regular files only."""
    for split, folder in FOLDERS.items():
        names = [path.stem for path in files(ade, 'images', folder)]
        (ade / f'{split}.txt').write_text('\n'.join(names))
    return [f'{split}_dataloader.dataset.ann_file={split}.txt' for split in SPLITS]


def files(ade, kind='annotations', folder='training'):
    return sorted((ade / kind / folder).iterdir())


def read(path):
    return np.array(Image.open(path))


def save(path, values, **options):
    """Overwrite an image, whatever its suffix."""
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, options.pop('format', 'PNG'), **options)


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to('/dev/null')


def sparse(path):
    os.truncate(path, MAX_BYTES + 1)


# Edits of the path of a label map, and what is reported beside the path.
FAULTY_MAPS = {
    'three channels': (lambda path: save(path, Image.open(path).convert('RGB')), '3 channels'),
    'grey and alpha': (lambda path: save(path, Image.open(path).convert('LA')), '2 channels'),
    'higher': (lambda path: save(path, read(path).repeat(2, axis=0)), '64x128'),
    'one pixel wide': (lambda path: save(path, read(path)[:, :1]), '1 pixel wide'),
    'floating-point': (
        lambda path: save(path, read(path).astype(np.float32) / 7, format='TIFF'),
        'floating-point',
    ),
    '16 bits': (lambda path: save(path, read(path).astype(np.uint16) + 256), 'value 26'),
    '16 bits at 256': (lambda path: save(path, np.full((64, 64), 256, np.uint16)), 'value 256'),
    '32 bits below 0': (
        lambda path: save(path, read(path).astype(np.int32) - 9, format='TIFF'),
        'value -',
    ),
    'value without a class': (lambda path: save(path, np.full((64, 64), 8, np.uint8)), '8'),
}
IRREGULAR = {
    'FIFO': (fifo, 'is not a regular file'),
    'device': (device, 'is not a regular file'),
    'sparse': (sparse, f'has {MAX_BYTES + 1} bytes'),
}


def test_loaders_of_other_names_may_make_other_labels(ade, configs):
    for path in files(ade):
        save(path, np.where(read(path) == 1, 255, 0).astype(np.uint8))
    dataset = Config.fromfile(configs['upernet']).train_dataloader.dataset
    plain, other = (
        dict(dataset, pipeline=[dict(type=name)]) for name in ('LoadAnnotations', 'LoadDrawings')
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        check_label_maps(other)
        with pytest.raises(DataError, match='255'):
            check_label_maps(plain)


@pytest.mark.parametrize('name', ['FIFO', 'device'])
def test_images_that_mmseg_does_not_list(ade, refuse, name):
    edit, token = IRREGULAR[name]
    image = files(ade, 'images')[1]
    edit(image)
    refuse(f'{image.name} {token}')


@pytest.mark.parametrize('name', FAULTY_MAPS)
def test_faulty_maps_stop_a_training(ade, refuse, name):
    edit, token = FAULTY_MAPS[name]
    path = files(ade)[1]
    edit(path)
    refuse(f'data/shapes/ade/annotations/training/{path.name} ', token, before_run=False)


@pytest.mark.parametrize('name', ['three channels', '16 bits'])
def test_faulty_maps_stop_a_validation(ade, refuse, name):
    edit, token = FAULTY_MAPS[name]
    path = files(ade, folder='validation')[1]
    edit(path)
    # Also in a data loading worker.
    workers = [f'val_dataloader.num_workers={int(name == "16 bits")}']
    refuse(path.name, token, options=workers, before_run=False)


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('images', 'FIFO'), ('images', 'sparse'), ('annotations', 'FIFO'), ('annotations', 'device')],
)
def test_irregular_files_stop_a_training(ade, lists, check, refuse, kind, name):
    edit, token = IRREGULAR[name]
    paths = files(ade, kind)
    for path in paths:
        edit(path)
    _, out, _ = check(*lists)
    assert_contains(out, *(f'{kind}/training/{path.name} {token}' for path in paths))
    refuse(f'data/shapes/ade/{kind}/training/', token, options=lists, before_run=False)


def test_one_irregular_file_is_left_out(ade, lists, tool, configs):
    path = files(ade)[0]
    fifo(path)
    code, out, _ = run(tool, 'train', configs['upernet'], *NARROW, *lists)
    assert code == 0
    assert_contains(out, f'annotations/training/{path.name} is not a regular file: left out')


@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_a_fifo_in_the_validation_set(ade, lists, refuse, kind):
    path = files(ade, kind, 'validation')[0]
    fifo(path)
    refuse(f'{path.name} is not a regular file', options=lists, before_run=False)


@pytest.mark.parametrize('reduce', [True, False])
def test_masks_of_a_drawing_program(ade, check, refuse, reduce):
    """Pixels of 255 are ignored, which leaves the background as the only class."""
    for path in [*files(ade), *files(ade, folder='validation')]:
        save(path, (read(path) == 2).astype(np.uint8) * 255)
    options = [f'{split}_dataloader.dataset.reduce_zero_label={reduce}' for split in SPLITS]
    assert check(*options)[1].count('0 and 255') >= len(SPLITS)
    refuse('data/shapes/ade/annotations/training', '0 and 255', options=options)


def test_maps_with_background_only(ade, check, refuse):
    for path in files(ade):
        save(path, np.zeros((64, 64), np.uint8))
    refuse('annotations/training', 'ignored')
    # Without reduce_zero_label it may be intended.
    code, out, _ = check('train_dataloader.dataset.reduce_zero_label=False')
    assert code == 0
    assert_contains(out, 'warning: classes without annotations: 6')


@pytest.mark.parametrize(('split', 'number'), [('train', 2), ('val', 1)])
@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_missing_files(ade, lists, refuse, split, number, kind):
    paths = files(ade, kind, FOLDERS[split])
    for path in paths[:number]:
        path.unlink()
    refuse(f'{kind}/{FOLDERS[split]}/{paths[0].name} is missing', options=lists)


def test_maps_without_images(ade, check, train):
    files(ade, 'images')[0].unlink()
    assert_contains(check()[1], 'warning: label maps without an image', files(ade)[0].name)
    train('train_dataloader.batch_size=3')


def test_folders_without_images(ade, refuse):
    options = [f'{split}_dataloader.dataset.img_suffix=.tif' for split in SPLITS]
    refuse('data/shapes/ade/images/training', '*.tif', options=options)


def test_control_characters_in_names_are_escaped(ade, refuse):
    image, label = files(ade, 'images')[0], files(ade)[0]
    image.rename(image.with_stem('\x1b[2J\rnew'))
    label = label.rename(label.with_stem('\x1b[2J\rnew'))
    save(label, Image.open(label).convert('RGB'))
    refuse(r'training/\x1b[2J\rnew.png has 3 channels', before_run=False)


def test_unusual_maps_and_images_are_accepted(ade, check, train):
    """A palette, 16 and 32 bits, 1 bit, several frames, only 0 and 255 in one map."""
    palette, wide, deep, frames = files(ade)
    with_palette = Image.open(palette).crop((0, 0, 64, 40))
    with_palette.putpalette([value for n in range(256) for value in (n, 0, 255 - n)])
    save(palette, with_palette)
    save(wide, read(wide).astype(np.uint16))
    save(deep, read(deep).astype(np.int32), format='TIFF')
    first = Image.open(frames)
    save(frames, first, format='GIF', save_all=True, append_images=[Image.new('L', (64, 64), 9)])
    bit, mask = files(ade, folder='validation')
    save(bit, read(bit) > 3)
    save(mask, (read(mask) == 2).astype(np.uint8) * 255)
    rotated, cmyk, animated, grey = files(ade, 'images')
    exif = Image.Exif()
    exif[0x0112] = 6
    save(rotated, Image.open(rotated).crop((0, 0, 40, 64)), format='JPEG', exif=exif)
    save(cmyk, Image.open(cmyk).convert('CMYK'), format='JPEG')
    moving = Image.open(animated).copy()
    save(animated, moving, format='PNG', save_all=True, append_images=[moving.rotate(90)])
    cv2.imwrite(str(ade / 'grey.png'), np.full((64, 64), 60000, np.uint16))
    (ade / 'grey.png').rename(grey)
    assert_contains(check()[1], 'train: errors: 0, warnings: 0')
    assert 'left out' not in train()


def test_ignore_index_of_the_dataset_only(ade, refuse):
    """The loss uses ignore_index of the heads."""
    path = files(ade)[0]
    save(path, np.full((64, 64), 9, np.uint8))
    options = ['train_dataloader.dataset.ignore_index=9']
    refuse(path.name, '9', options=options, before_run=False)


def test_a_config_without_label_maps(ade, tool):
    Path('config.py').write_text(
        f'_base_ = {str(ROOT / "configs/demo/upernet.py")!r}\n'
        "prefix = dict(_delete_=True, img_path='images/training')\n"
        'train_dataloader = dict(dataset=dict(data_prefix=prefix))\n'
    )
    assert_refused(tool, 'config.py', 'seg_map_path')


def test_errors_in_the_test_set(ade, refuse):
    for path in files(ade, folder='validation'):
        save(path, np.where(read(path) == 2, 255, 0).astype(np.uint8))
    refuse('annotations/validation', '0 and 255', name='test')
