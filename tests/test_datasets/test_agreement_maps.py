"""Label maps and images that check_dataset reports stop train.py; what it passes is trained on."""

import os
import shutil
import signal
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmfocalnet.datasets import make_shapes
from mmfocalnet.datasets.image_files import MAX_BYTES
from mmfocalnet.datasets.inspection import inspect_dataset
from mmfocalnet.datasets.label_maps import check_label_maps
from mmfocalnet.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / 'shared'
CONFIG = ROOT / 'configs/demo/upernet.py'
FOLDERS = {'train': 'training', 'val': 'validation'}
SPLITS = tuple(FOLDERS)
RUNS = count()
TINY = [
    'model.backbone.embed_dim=8',
    'model.backbone.depths=[1,1,1,1]',
    'model.decode_head.in_channels=[8,16,32,64]',
    'model.decode_head.channels=8',
    'model.auxiliary_head.in_channels=32',
    # With these, upstream's mmseg fails on ignored pixels.
    'model.decode_head.loss_decode.class_weight=None',
    'model.auxiliary_head.loss_decode.class_weight=None',
    'train_dataloader.batch_size=4',
    'val_dataloader.batch_size=1',
    'train_cfg.max_iters=1',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=-1',
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


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 4, 2, size=64)


@pytest.fixture
def data(made, tmp_path, monkeypatch):
    """A copy to damage, where the demo expects it."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path / 'data/shapes') / 'ade'


@pytest.fixture
def check(tool):
    def _check(*flags):
        return tool('check_dataset', CONFIG, '--out', 'charts', *flags)

    return _check


@pytest.fixture
def train(tool, monkeypatch):
    # Formatting the config for the log takes longer than all the rest.
    monkeypatch.setattr(Config, 'pretty_text', 'formatted')

    def _train(*options):
        # The logger of another run of this second would write to what that run printed.
        name = f'experiment_name=maps_{next(RUNS)}'
        return tool('train', CONFIG, '--work-dir', 'work', '--cfg-options', name, *TINY, *options)

    return _train


def maps(data, split='training'):
    return sorted((data / 'annotations' / split).iterdir())


def images(data, split='training'):
    return sorted((data / 'images' / split).iterdir())


def read(path):
    return np.array(Image.open(path))


def save(path, values, **options):
    """Write another image in the place of one, whatever its suffix."""
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


# What is done to the path of a label map, and what is reported beside the path.
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
# These are never opened.
IRREGULAR = {
    'FIFO': (fifo, 'is not a regular file'),
    'device': (device, 'is not a regular file'),
    'sparse': (sparse, f'has {MAX_BYTES + 1} bytes'),
}


def assert_named(text, *tokens):
    assert 'Traceback' not in text
    assert [token for token in tokens if token not in text] == [], text


def test_other_loaders_may_give_other_labels(data):
    for path in maps(data):
        save(path, np.where(read(path) == 1, 255, 0).astype(np.uint8))
    dataset = Config.fromfile(CONFIG).train_dataloader.dataset
    plain, other = (
        dict(dataset, pipeline=[dict(type=name)]) for name in ('LoadAnnotations', 'LoadDrawings')
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        check_label_maps(other)
        with pytest.raises(DataError, match='255'):
            check_label_maps(plain)


@pytest.mark.parametrize('name', ['FIFO', 'device'])
def test_images_that_mmseg_does_not_list(data, check, train, name):
    path = maps(data)[1]
    image = Path(str(path).replace('annotations', 'images')).with_suffix('.jpg')
    IRREGULAR[name][0](image)
    code, out, _ = check()
    assert code == 1
    assert_named(out, image.name, 'is not a regular file')
    code, _, error = train()
    assert code == 2
    assert_named(error, image.name, 'is not a regular file')


@pytest.mark.parametrize('name', FAULTY_MAPS)
def test_faulty_maps_stop_a_training(data, check, train, name):
    edit, token = FAULTY_MAPS[name]
    path = maps(data)[1]
    edit(path)
    where = f'data/shapes/ade/annotations/training/{path.name} '
    code, out, _ = check()
    assert code == 1
    assert_named(out, where, token)
    code, _, error = train()
    assert code == 2
    assert_named(error, 'train.py: ', where, token)


@pytest.mark.parametrize('name', ['three channels', '16 bits'])
def test_faulty_maps_stop_a_validation(data, check, train, name):
    """In a worker of the data loader as well."""
    edit, token = FAULTY_MAPS[name]
    path = maps(data, 'validation')[1]
    edit(path)
    code, out, _ = check()
    assert code == 1
    assert_named(out, path.name, token)
    code, _, error = train('val_dataloader.num_workers=1')
    assert code == 2
    assert_named(error, 'train.py: ', path.name, token)


@pytest.fixture
def lists(data):
    """Lists of the images: of a folder mmseg lists regular files only."""
    for split, folder in FOLDERS.items():
        names = [path.stem for path in images(data, folder)]
        (data / f'{split}.txt').write_text('\n'.join(names))
    return [f'{split}_dataloader.dataset.ann_file={split}.txt' for split in SPLITS]


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('images', 'FIFO'), ('images', 'sparse'), ('annotations', 'FIFO'), ('annotations', 'device')],
)
def test_irregular_files_stop_a_training(data, lists, check, train, kind, name):
    edit, token = IRREGULAR[name]
    paths = sorted((data / kind / 'training').iterdir())
    for path in paths:
        edit(path)
    code, out, _ = check('--cfg-options', *lists)
    assert code == 1
    for path in paths:
        assert_named(out, f'{kind}/training/{path.name} {token}')
    code, _, error = train(*lists)
    assert code == 2
    assert_named(
        error, 'train.py: ', f'data/shapes/ade/{kind}/training/', token, 'check_dataset.py'
    )


def test_one_irregular_file_is_left_out(data, lists, train):
    path = maps(data)[0]
    fifo(path)
    code, out, _ = train(*lists)
    assert code == 0
    assert_named(out, f'annotations/training/{path.name} is not a regular file: left out')


@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_a_fifo_of_the_validation(data, lists, check, train, kind):
    path = min((data / kind / 'validation').iterdir())
    fifo(path)
    assert check('--cfg-options', *lists)[0] == 1
    code, _, error = train(*lists)
    assert code == 2
    assert_named(error, path.name, 'is not a regular file')


@pytest.mark.parametrize('reduce', [True, False])
def test_masks_of_a_drawing_program(data, check, train, reduce):
    """Pixels of 255 are ignored: the only class that is left is the background."""
    for path in [*maps(data), *maps(data, 'validation')]:
        save(path, (read(path) == 2).astype(np.uint8) * 255)
    options = [f'{split}_dataloader.dataset.reduce_zero_label={reduce}' for split in SPLITS]
    code, out, _ = check('--split', *SPLITS, '--cfg-options', *options)
    assert code == 1
    assert out.count('0 and 255') == 2
    code, _, error = train(*options)
    assert code == 2
    assert_named(error, 'data/shapes/ade/annotations/training', '0 and 255')
    assert not Path('work').exists()


def test_maps_without_labels(data, check, train):
    for path in maps(data):
        save(path, np.zeros((64, 64), np.uint8))
    code, out, _ = check()
    assert code == 1
    assert_named(out, 'annotations/training', 'ignored')
    code, _, error = train()
    assert code == 2
    assert_named(error, 'annotations/training', 'ignored')


def test_background_alone_is_sound(data, check):
    """Nothing says that it is a mistake; each class without a pixel is a warning."""
    for path in maps(data):
        save(path, np.zeros((64, 64), np.uint8))
    code, out, _ = check(
        '--split', 'train', '--cfg-options', 'train_dataloader.dataset.reduce_zero_label=False'
    )
    assert code == 0
    assert_named(out, 'warning: classes without annotations: 6')


@pytest.mark.parametrize(('split', 'fewest'), [('train', 2), ('val', 1)])
@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_missing_files(data, lists, check, train, split, fewest, kind):
    """What folders and lists show stops a training before it starts."""
    paths = sorted((data / kind / FOLDERS[split]).iterdir())
    for path in paths[:fewest]:
        path.unlink()
    code, out, _ = check('--cfg-options', *lists)
    assert code == 1
    assert_named(out, f'{paths[0].name} is missing')
    code, _, error = train(*lists)
    assert code == 2
    assert_named(error, f'{kind}/{FOLDERS[split]}/{paths[0].name} is missing')
    assert not Path('work').exists()


def test_maps_without_images(data, check, train):
    images(data)[0].unlink()
    code, out, _ = check()
    assert code == 0
    assert_named(out, 'warning: label maps without an image', maps(data)[0].name)
    assert train('train_dataloader.batch_size=3')[0] == 0


def test_folders_without_images(data, check, train):
    options = [f'{split}_dataloader.dataset.img_suffix=.tif' for split in SPLITS]
    assert check('--cfg-options', *options)[0] == 1
    code, _, error = train(*options)
    assert code == 2
    assert_named(error, 'data/shapes/ade/images/training', '*.tif')


def test_names_that_a_terminal_would_obey(data, check, train):
    image, label = images(data)[0], maps(data)[0]
    image.rename(image.with_stem('\x1b[2J\rnew'))
    label = label.rename(label.with_stem('\x1b[2J\rnew'))
    save(label, Image.open(label).convert('RGB'))
    code, out, _ = check()
    assert code == 1
    code, _, error = train()
    assert code == 2
    for text in (out, error):
        assert_named(text, r'training/\x1b[2J\rnew.png has 3 channels')
        assert '\x1b' not in text


def test_odd_but_sound(data, check, train):
    """A palette, 16 and 32 bits, 1 bit, several frames, nothing but 0 and 255; images likewise."""
    palette, wide, deep, frames = maps(data)
    with_palette = Image.open(palette).crop((0, 0, 64, 40))
    with_palette.putpalette([value for n in range(256) for value in (n, 0, 255 - n)])
    save(palette, with_palette)
    save(wide, read(wide).astype(np.uint16))
    save(deep, read(deep).astype(np.int32), format='TIFF')
    first = Image.open(frames)
    save(frames, first, format='GIF', save_all=True, append_images=[Image.new('L', (64, 64), 9)])
    bit, mask = maps(data, 'validation')
    save(bit, read(bit) > 3)
    save(mask, (read(mask) == 2).astype(np.uint8) * 255)
    turned, cmyk, animated, grey = images(data)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(turned, Image.open(turned).crop((0, 0, 40, 64)), format='JPEG', exif=exif)
    save(cmyk, Image.open(cmyk).convert('CMYK'), format='JPEG')
    moving = Image.open(animated).copy()
    save(animated, moving, format='PNG', save_all=True, append_images=[moving.rotate(90)])
    cv2.imwrite(str(data / 'grey.png'), np.full((64, 64), 60000, np.uint16))
    (data / 'grey.png').rename(grey)
    code, out, _ = check()
    assert code == 0, out
    assert 'train: errors: 0, warnings: 0' in out
    code, out, error = train()
    assert code == 0, error
    assert 'mIoU' in out and 'left out' not in out


@pytest.mark.parametrize('channels', [1, 3])
def test_12_bits_stored_in_16(data, check, channels):
    shape = (64, 64, 3) if channels == 3 else (64, 64)
    path = images(data)[2]
    values = np.linspace(0, 4095, 64 * 64 * channels).reshape(shape).astype(np.uint16)
    cv2.imwrite(str(data / 'deep.png'), values)
    (data / 'deep.png').rename(path)
    save(images(data)[1], np.full((64, 64, 3), 9, np.uint8))  # dark, and of 8 bits
    code, out, _ = check()
    assert code == 0
    assert_named(
        out, 'train: errors: 0, warnings: 1', f'{path.name} has uint16 values of at most 4095'
    )


def test_labels_that_the_dataset_alone_ignores(data, check, train):
    """The loss goes by ignore_index of the heads."""
    option = 'train_dataloader.dataset.ignore_index=9'
    save(maps(data)[0], np.full((64, 64), 9, np.uint8))
    code, out, _ = check('--cfg-options', option)
    assert code == 1
    assert_named(out, f'{maps(data)[0].name} has the value 9')
    code, _, error = train(option)
    assert code == 2
    assert_named(error, f'{maps(data)[0].name} holds the label 9')


def test_a_config_without_label_maps(data, tool):
    Path('config.py').write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        "prefix = dict(_delete_=True, img_path='images/training')\n"
        'train_dataloader = dict(dataset=dict(data_prefix=prefix))\n'
    )
    code, out, _ = tool('check_dataset', 'config.py', '--out', 'charts')
    assert code == 1
    assert_named(out, 'is not in data_prefix')
    code, _, error = tool('train', 'config.py')
    assert code == 2
    assert_named(error, 'seg_map_path')
    assert not Path('work_dirs').exists()


def test_the_test_set_is_checked_too(data, tool):
    for path in maps(data, 'validation'):
        save(path, np.where(read(path) == 2, 255, 0).astype(np.uint8))
    code, _, error = tool('test', CONFIG, 'none.pth')
    assert code == 2
    assert_named(error, 'annotations/validation', '0 and 255')


@pytest.mark.parametrize('split', FOLDERS)
def test_real_images_in_the_layout_of_ade20k(split):
    root = SHARED / 'data/ade'
    if not root.is_dir():
        pytest.skip('no ../shared/data/ade here')
    cfg = Config.fromfile(ROOT / 'configs/upernet/focalnet_t_160k_ade20k.py')
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.data_root = str(root)
    with DefaultScope.overwrite_default_scope('mmseg'):
        report = inspect_dataset(dataset)
        check_label_maps(dataset)
    assert report.findings.count(errors=True) == 0, report.findings.lines()
    assert report.images == len(list((root / 'images' / FOLDERS[split]).iterdir())) > 0
