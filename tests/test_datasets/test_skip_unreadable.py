"""Unreadable files are left out of training, and are errors in validation and test."""

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmfocalnet import SkipUnreadable, UnreadableFilesHook
from mmfocalnet.datasets import make_shapes, skip_unreadable
from mmfocalnet.datasets.image_files import image_fault
from mmfocalnet.errors import DataError

CONFIGS = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(p for p in CONFIGS.glob('*/*.py') if not p.parent.name.startswith('_'))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 12, 2, size=64)


@pytest.fixture
def data(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'shapes')


def build(name, data, split='train', **settings):
    cfg = Config.fromfile(CONFIGS / f'demo/{name}.py')
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.update(data_root=f'{data}/{"ade" if "upernet" in name else "coco"}', **settings)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(dataset)


def call_hook(stage, dataset):
    """Call the hook as a runner does before training, validation or test."""
    runner = SimpleNamespace(**{f'{stage}_dataloader': SimpleNamespace(dataset=dataset)})
    getattr(UnreadableFilesHook(), f'before_{stage}')(runner)


def damage(folder, *indices):
    paths = [sorted(Path(folder).iterdir())[index] for index in indices]
    for path in paths:
        path.write_bytes(path.read_bytes()[:500])
    return paths


def loader_of(dataset, index=0):
    """The first loader of a pipeline, or that of its labels; the samples are seeded before."""
    return dataset.pipeline.transforms[index + 1]


@pytest.mark.parametrize(
    ('name', 'index', 'folder'),
    [
        ('mask_rcnn', 0, 'coco/train2017'),
        ('mask2former', 0, 'coco/train2017'),
        ('mask2former', 1, 'coco/annotations/panoptic_train2017'),
        ('upernet', 0, 'ade/images/training'),
        ('upernet', 1, 'ade/annotations/training'),
    ],
)
@pytest.mark.parametrize('content', ['half', 'empty', 'missing'])
def test_another_sample_is_loaded(data, name, index, folder, content):
    dataset = build(name, data)
    (path,) = damage(data / folder, 4)
    if content == 'empty':
        path.write_bytes(b'')
    elif content == 'missing':
        path.unlink()
    call_hook('train', dataset)
    for _ in range(3):
        assert dataset[4]['data_samples'].img_path != dataset.get_data_info(4)['img_path']
    assert loader_of(dataset, index).count == 1


def test_each_file_is_logged_once(data, monkeypatch):
    logged = []
    monkeypatch.setattr(skip_unreadable, 'print_log', lambda text, *_: logged.append(text))
    paths = damage(data / 'coco/train2017', 4, 5)
    dataset = build('mask_rcnn', data)
    loader_of(dataset).total = 1000
    for index in (4, 4, 5, 4, 5):
        loader_of(dataset)(dataset.get_data_info(index))
    assert [text.split()[0] for text in logged] == [str(path) for path in paths]


@pytest.mark.parametrize(('total', 'maximum'), [(110, 1), (20, 1), (300, 3), (399, 3)])
def test_more_than_one_percent_stops_training(data, total, maximum):
    paths = damage(data / 'coco/train2017', *range(maximum + 1))
    dataset = build('mask_rcnn', data)
    loader_of(dataset).total = total
    for index in range(maximum):
        loader_of(dataset)(dataset.get_data_info(index))
    with pytest.raises(DataError) as error:
        loader_of(dataset)(dataset.get_data_info(maximum))
    assert f'{maximum + 1} of {total}' in str(error.value)
    assert str(paths[maximum]) in str(error.value)


def test_workers_count_together(data):
    damage(data / 'coco/train2017', 0, 1)
    dataset = build('mask_rcnn', data)
    call_hook('train', dataset)
    # One damaged image for each worker.
    loader = DataLoader(dataset, num_workers=2, collate_fn=list, sampler=[0, 1])
    with pytest.raises(DataError, match='2 of 12'):
        list(loader)
    assert loader_of(dataset).count == 2


def test_spawned_workers_share_the_count():
    one, two = (SkipUnreadable(dict(type='LoadImageFromFile')) for _ in range(2))
    assert one._found.is_shared()
    one._found[3] = 1
    assert (one.count, two.count) == (1, 0)
    assert pickle.loads(pickle.dumps(one)).count == 1


def find_one(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    load = SkipUnreadable(dict(type='LoadImageFromFile'))
    load({'img_path': f'{folder}/{rank}.jpg'})
    assert load.count == 1
    dataset = BaseDataset(lazy_init=True)
    dataset.pipeline.transforms.append(load)
    runner = SimpleNamespace(iter=99, train_dataloader=SimpleNamespace(dataset=dataset))
    UnreadableFilesHook().after_train_iter(runner)
    Path(folder, f'{rank}.count').write_text(str(load.count))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_of_a_launch_count_together(tmp_path):
    torch.multiprocessing.spawn(find_one, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / f'{rank}.count').read_text() for rank in (0, 1)] == ['2', '2']


def test_the_total_does_not_count_repetitions(data):
    parts = [build('mask_rcnn', data, indices=n) for n in (3, 5)]
    with DefaultScope.overwrite_default_scope('mmdet'):
        inner = dict(type='ConcatDataset', datasets=parts)
        both = DATASETS.build(dict(type='RepeatDataset', times=3, dataset=inner))
    call_hook('train', both)
    assert [loader_of(part).total for part in parts] == [8, 8]


def test_other_errors_are_raised(data):
    load = TRANSFORMS.build(
        dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile', imdecode_backend='none'))
    )
    path = sorted((data / 'coco/train2017').iterdir())[0]
    with pytest.raises(ValueError, match='none'):
        load(dict(img_path=str(path)))
    with pytest.raises(KeyError):
        load({})
    assert load.count == 0


@pytest.mark.parametrize(
    ('name', 'folder'),
    [
        ('mask_rcnn', 'coco/val2017'),
        ('mask2former', 'coco/annotations/panoptic_val2017'),
        ('upernet', 'ade/annotations/validation'),
        ('upernet with augmentation', 'ade/annotations/validation'),
    ],
)
def test_in_validation_and_test_the_file_is_an_error(data, name, folder):
    (path,) = damage(data / folder, 1)
    name, _, with_tta = name.partition(' ')
    settings = {}
    if with_tta:
        settings['pipeline'] = Config.fromfile(CONFIGS / f'demo/{name}.py').tta_pipeline
    for split in ('val', 'test'):
        dataset = build(name, data, split, **settings)
        for _ in range(2):  # before each validation
            call_hook(split, dataset)
        assert dataset[0]
        with pytest.raises(DataError, match=f'{path} is damaged'):
            dataset[1]


@pytest.mark.parametrize(
    ('name', 'folder'),
    [
        ('mask2former', 'coco/annotations/panoptic_train2017'),
        ('upernet', 'ade/annotations/training'),
    ],
)
def test_a_label_map_of_another_size_is_an_error(data, name, folder):
    path = sorted((data / folder).iterdir())[4]
    values = np.array(Image.open(path))
    Image.fromarray(values.repeat(2, axis=0)).save(path)
    dataset = build(name, data)
    call_hook('train', dataset)
    with pytest.raises(DataError, match=f'{path} is 64x128'):
        dataset[4]


def test_faults_of_images(tmp_path):
    assert image_fault(tmp_path / 'none.png') == 'is missing'
    assert image_fault(tmp_path) == 'is not a regular file'
    assert 'null' in image_fault('a\0b')
    (tmp_path / 'text.png').write_text('text')
    assert 'damaged' in image_fault(tmp_path / 'text.png')


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_all_configs_skip_unreadable_files(path):
    cfg = Config.fromfile(path)
    assert cfg.default_hooks.unreadable_files.type == 'UnreadableFilesHook'
    loaders = [
        step.type
        for step in cfg.train_dataloader.dataset.pipeline
        # Boxes and masks are in the annotation file.
        if step.type.startswith('Load') and not (step.type == 'LoadAnnotations' and len(step) > 1)
    ]
    assert loaders == []
    assert cfg.train_dataloader.dataset.pipeline[1].load.type == 'LoadImageFromFile'
