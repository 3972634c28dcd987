"""Datasets that do not fit together are named before anything is trained."""

import json
import shutil

import pytest
import torch
from mmengine.registry import DefaultScope

from mmfocalnet.datasets import METAINFO, make_shapes
from mmfocalnet.datasets.checks import CheckLabelsHook, check_coco
from mmfocalnet.errors import DataError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 2, 2, size=64) / 'coco'


@pytest.fixture
def coco(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'coco')


def check(root, kind='CocoDataset', classes=None, **settings):
    settings.setdefault('ann_file', 'annotations/instances_train2017.json')
    if classes is not None:
        settings['metainfo'] = dict(classes=classes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_coco(dict(type=kind, data_root=str(root), **settings))


def panoptic(root, **settings):
    check(
        root,
        'CocoPanopticDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        **settings,
    )


def test_fitting_datasets_pass(coco):
    things = METAINFO['detection']['classes']
    check(coco, classes=things)
    check(coco, classes=things[1:])  # a file may hold more than is trained on
    panoptic(coco, metainfo=METAINFO['panoptic'])
    check(coco, 'BaseDetDataset', ann_file='none.json')


@pytest.mark.parametrize(
    ('classes', 'fault'),
    [
        (('circle', 'hexagon'), 'the file lacks hexagon'),
        (('square', 'circle'), 'the order differs'),
        (None, r'names person, bicycle, car, motorcycle, ... \(80 in all\)'),
    ],
)
def test_other_categories_than_metainfo(coco, classes, fault):
    with pytest.raises(DataError, match=fault) as error:
        check(coco, classes=classes)
    assert 'instances_train2017.json has the categories circle, square, triangle' in str(
        error.value
    )


def test_categories_are_found_wherever_they_stand(coco):
    path = coco / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    first = {'categories': content.pop('categories'), **content}
    path.write_text(json.dumps(first, indent=1))
    check(coco, classes=('circle', 'star'))


@pytest.mark.parametrize('content', ['', '[]', '{"images": []}', '{"categories": [1]}', 'text'])
def test_files_in_another_format(coco, content):
    (coco / 'annotations/instances_train2017.json').write_text(content)
    with pytest.raises(DataError, match=r'instances_train2017\.json .* COCO format'):
        check(coco)


def test_panoptic_folder_without_its_maps(coco):
    folder = coco / 'annotations/panoptic_train2017'
    maps = sorted(folder.iterdir())
    maps[0].unlink()
    with pytest.raises(DataError, match=f'lacks 1 of the 2 panoptic maps .*{maps[0].name}'):
        panoptic(coco, metainfo=METAINFO['panoptic'])


def test_real_coco_passes(coco_root):
    for split in ('train', 'val'):
        check(coco_root, ann_file=f'annotations/instances_{split}2017.json')
    panoptic(coco_root)


def batch(labels, **settings):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(labels)[None]))
    sample.set_metainfo(dict(seg_map_path='map.png', **settings))
    return dict(data_samples=[sample])


class Runner:
    """What the hook asks of MMEngine's Runner."""

    def __init__(self, classes):
        dataset = type('Dataset', (), dict(metainfo=dict(classes=classes)))
        loader = type('DataLoader', (), dict(dataset=dataset))
        self.train_dataloader = self.val_dataloader = self.test_dataloader = loader


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_labels_out_of_range(stage):
    before = getattr(CheckLabelsHook(), f'before_{stage}_iter')
    runner = Runner('abc')
    before(runner, 0, batch([[0, 2], [255, 1]], reduce_zero_label=True))
    with pytest.raises(
        DataError, match=r'map.png holds the label 4, .* labels 1 to 3: .* 0 or 255'
    ):
        before(runner, 0, batch([[0, 3], [255, 1]], reduce_zero_label=True))
    with pytest.raises(DataError, match=r'map.png holds the label 3, .* labels 0 to 2'):
        before(runner, 0, batch([[0, 3]]))
    views = batch([[7]])
    with pytest.raises(DataError, match='holds the label 7'):
        before(runner, 0, dict(data_samples=[views['data_samples'] * 2]))
