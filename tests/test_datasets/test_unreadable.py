"""Files that cannot be read are left out of training, and named in validation and test."""

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
from mmfocalnet.datasets import make_shapes, skip_unreadable as unreadable
from mmfocalnet.datasets.image_files import image_fault
from mmfocalnet.errors import DataError

CONFIGS = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(p for p in CONFIGS.glob('*/*.py') if not p.parent.name.startswith('_'))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 110, 2, size=64)


@pytest.fixture
def data(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'shapes')


def build(name, data, split='train', **settings):
    cfg = Config.fromfile(CONFIGS / f'demo/{name}.py')
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.update(data_root=f'{data}/{"ade" if "upernet" in name else "coco"}', **settings)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(dataset)


def start(dataset):
    """What the runner does with the hook before it trains."""
    runner = SimpleNamespace(train_dataloader=SimpleNamespace(dataset=dataset))
    UnreadableFilesHook().before_train(runner)


def damage(folder, *numbers):
    paths = [sorted(Path(folder).iterdir())[number] for number in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[:500])
    return paths


def guard(dataset, place=0):
    return dataset.pipeline.transforms[place]


PLACES = [
    ('mask_rcnn', 0, 'coco/train2017'),
    ('mask2former', 0, 'coco/train2017'),
    ('mask2former', 1, 'coco/annotations/panoptic_train2017'),
    ('upernet', 0, 'ade/images/training'),
    ('upernet', 1, 'ade/annotations/training'),
]


@pytest.mark.parametrize(('name', 'place', 'folder'), PLACES)
@pytest.mark.parametrize('content', ['half', 'empty', 'missing'])
def test_another_sample_is_taken(data, name, place, folder, content):
    dataset = build(name, data)
    (path,) = damage(data / folder, 4)
    if content == 'empty':
        path.write_bytes(b'')
    elif content == 'missing':
        path.unlink()
    start(dataset)
    for _ in range(3):
        assert dataset[4]['data_samples'].img_path != dataset.get_data_info(4)['img_path']
    assert guard(dataset, place).count == 1


def test_each_is_named_once(data, monkeypatch):
    said = []
    monkeypatch.setattr(unreadable, 'print_log', lambda text, *_: said.append(text))
    first, second = damage(data / 'coco/train2017', 4, 5)
    dataset = build('mask_rcnn', data)
    guard(dataset).total = 1000
    for index in (4, 4, 5, 4, 5):
        guard(dataset)(dataset.get_data_info(index))
    assert said == [
        f'{path} is damaged or not an image: left out of training.' for path in (first, second)
    ]


@pytest.mark.parametrize(('total', 'most'), [(110, 1), (20, 1), (300, 3), (399, 3)])
def test_more_than_one_percent_stop(data, total, most):
    paths = damage(data / 'coco/train2017', *range(most + 1))
    dataset = build('mask_rcnn', data)
    guard(dataset).total = total
    for index in range(most):
        guard(dataset)(dataset.get_data_info(index))
    with pytest.raises(DataError) as error:
        guard(dataset)(dataset.get_data_info(most))
    assert str(error.value).startswith(f'{most + 1} files of the {total} training samples')
    assert f'{paths[most]}, which is damaged or not an image' in str(error.value)


def test_workers_count_together(data):
    damage(data / 'coco/train2017', 0, 1)
    dataset = build('mask_rcnn', data)
    start(dataset)
    # One bad image for each worker.
    loader = DataLoader(dataset, num_workers=2, collate_fn=list, sampler=[0, 1])
    with pytest.raises(DataError, match='2 files of the 110 training samples'):
        list(loader)
    assert guard(dataset).count == 2


def test_spawned_workers_share_the_count():
    one = SkipUnreadable(dict(type='LoadImageFromFile'))
    two = SkipUnreadable(dict(type='LoadImageFromFile'))
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


@pytest.mark.slow
def test_the_total_is_that_of_all_files(data):
    dataset = build('mask_rcnn', data)
    with DefaultScope.overwrite_default_scope('mmdet'):
        both = DATASETS.build(
            dict(
                type='RepeatDataset',
                times=3,
                dataset=dict(type='ConcatDataset', datasets=[dataset, build('mask_rcnn', data)]),
            )
        )
    start(both)
    assert guard(dataset).total == 220


def test_other_errors_are_not_hidden(data):
    load = TRANSFORMS.build(
        dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile', imdecode_backend='none'))
    )
    path = sorted((data / 'coco/train2017').iterdir())[0]
    with pytest.raises(ValueError, match='backend: none is not supported'):
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
    ],
)
def test_in_validation_and_test_the_file_is_named(data, name, folder):
    (path,) = damage(data / folder, 1)
    hook = UnreadableFilesHook()
    for split in ('val', 'test'):
        dataset = build(name, data, split)
        runner = SimpleNamespace(**{f'{split}_dataloader': SimpleNamespace(dataset=dataset)})
        for _ in range(2):  # before each validation
            getattr(hook, f'before_{split}')(runner)
        assert dataset[0]
        with pytest.raises(DataError, match=f'{path} is damaged or not an image: repair it'):
            dataset[1]


@pytest.mark.parametrize(
    ('name', 'folder'),
    [
        ('mask2former', 'coco/annotations/panoptic_{}2017'),
        ('upernet', 'ade/annotations/{}ing'),
    ],
)
def test_a_label_map_of_another_size_is_an_error(data, name, folder):
    path = sorted((data / folder.format('train')).iterdir())[4]
    values = np.array(Image.open(path))
    Image.fromarray(values.repeat(2, axis=0)).save(path)
    dataset = build(name, data)
    start(dataset)
    with pytest.raises(DataError, match=f'{path} is 64x128, its image 64x64'):
        dataset[4]


def test_with_augmentation_at_test_time(data):
    (path,) = damage(data / 'ade/annotations/validation', 1)
    cfg = Config.fromfile(CONFIGS / 'demo/upernet.py')
    dataset = build('upernet', data, 'test', pipeline=cfg.tta_pipeline)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))
    UnreadableFilesHook().before_test(runner)
    assert dataset[0]
    with pytest.raises(DataError, match=f'{path} is damaged'):
        dataset[1]


def test_faults_of_pictures(tmp_path):
    assert image_fault(tmp_path / 'none.png') == 'is missing'
    assert image_fault(tmp_path) == 'is not a regular file'
    assert image_fault('a\0b').startswith('cannot be opened (')
    (tmp_path / 'text.png').write_text('text')
    assert image_fault(tmp_path / 'text.png') == 'is damaged or not an image'


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_on_by_default_in_all_configs(path):
    cfg = Config.fromfile(path)
    assert cfg.default_hooks.unreadable_files.type == 'UnreadableFilesHook'
    loaders = [
        step.type
        for step in cfg.train_dataloader.dataset.pipeline
        # Boxes and masks are in the annotation file.
        if step.type.startswith('Load') and not (step.type == 'LoadAnnotations' and len(step) > 1)
    ]
    assert loaders == []
    assert cfg.train_dataloader.dataset.pipeline[0].load.type == 'LoadImageFromFile'
