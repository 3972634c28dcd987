"""Annotation files, classes and heads that do not fit together are refused before a training."""

import json
import shutil
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

from mmfocalnet.datasets import METAINFO, make_shapes
from mmfocalnet.datasets.category_names import check_num_classes
from mmfocalnet.datasets.inspection import check_annotations
from mmfocalnet.errors import ConfigError, DataError

SHARED = Path(__file__).resolve().parents[3] / 'shared'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 2, 2, size=64) / 'coco'


@pytest.fixture
def coco(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'coco')


def check(root, kind='CocoDataset', classes=None, evaluator=None, **settings):
    settings.setdefault('ann_file', 'annotations/instances_train2017.json')
    if classes is not None:
        settings['metainfo'] = dict(classes=classes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_annotations(dict(type=kind, data_root=str(root), **settings), evaluator)


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


def test_a_class_that_parses_annotations_itself_is_not_checked(coco):
    from mmdet.datasets import CocoDataset

    class OwnFormat(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return None

    path = coco / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    for record in content['annotations']:
        del record['area']
    path.write_text(json.dumps(content))
    things = METAINFO['detection']['classes']
    check(coco, OwnFormat, classes=things)
    with pytest.raises(DataError, match='area'):
        check(coco, classes=things)


@pytest.mark.parametrize(
    ('classes', 'fault'),
    [
        (('circle', 'hexagon'), 'the file lacks "hexagon"'),
        (('square', 'circle'), 'the order differs'),
        (None, r'names "person", "bicycle", "car", "motorcycle", ... \(80 in all\)'),
    ],
)
def test_other_categories_than_metainfo(coco, classes, fault):
    with pytest.raises(DataError, match=fault) as error:
        check(coco, classes=classes)
    assert 'instances_train2017.json has the categories "circle", "square", "triangle"' in str(
        error.value
    )


def test_categories_named_twice(coco):
    path = coco / 'annotations/instances_train2017.json'
    path.write_text(path.read_text().replace('"name":"square"', '"name":"circle"'))
    with pytest.raises(DataError, match='the file has "circle" more than once'):
        check(coco, classes=('circle', 'star'))


def test_what_mmdet_loads_in_other_ways_passes(coco):
    from mmdet.datasets import CocoDataset

    check(coco, 'Objects365V1Dataset', classes=('square', 'circle'))
    check(coco, 'V3DetDataset')
    check(coco, ann_file='s3://bucket/instances.json')
    check(coco, ann_file=['a.json', 'b.json'])
    with pytest.raises(DataError, match='the order differs'):
        check(coco, CocoDataset, classes=('square', 'circle'))


def test_a_class_without_its_comma(coco):
    with pytest.raises(ConfigError, match=r"classes='circle', a string: add the comma"):
        check(coco, classes=('circle'))


THREE = dict(type='CocoDataset', metainfo=dict(classes=('a', 'b', 'c')))


@pytest.mark.parametrize(
    'model',
    [
        dict(bbox_head=dict(num_classes=3)),
        dict(roi_head=dict(bbox_head=[dict(num_classes=3)] * 2, mask_head=dict(num_classes=3))),
        dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=None)),
        dict(panoptic_head=dict(num_things_classes=2, num_stuff_classes=1)),
        dict(decode_head=dict(num_classes=1)),
        dict(rpn_head=dict(num_classes=7)),
    ],
)
def test_heads_with_the_classes_of_the_dataset_pass(model):
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_num_classes(THREE, model)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(bbox_head=dict(num_classes=80)), 'model.bbox_head.num_classes is 80, .* 3 classes'),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=2)])),
            r'model.roi_head.bbox_head.1.num_classes is 2',
        ),
        (dict(roi_head=dict(mask_head=dict(num_classes=80))), 'mask_head.num_classes is 80'),
        (dict(decode_head=dict(num_classes=150)), 'model.decode_head.num_classes is 150'),
        (
            dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=53)),
            r'num_things_classes \+ num_stuff_classes is 133',
        ),
    ],
)
def test_heads_with_another_number_of_classes(model, message):
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(ConfigError, match=message),
    ):
        check_num_classes(THREE, model)


@pytest.mark.parametrize('content', ['', '[]', '{"images": []}', '{"categories": [1]}', 'text'])
def test_files_in_another_format(coco, content):
    (coco / 'annotations/instances_train2017.json').write_text(content)
    with pytest.raises(DataError, match=r'instances_train2017\.json .* COCO format'):
        check(coco)


def test_panoptic_folder_without_its_maps(coco):
    folder = coco / 'annotations/panoptic_train2017'
    maps = sorted(folder.iterdir())
    maps[0].unlink()
    with pytest.raises(DataError, match=rf'{maps[0].name} \(image 1\) is missing'):
        panoptic(coco, metainfo=METAINFO['panoptic'])


def test_a_test_set_without_public_annotations(coco):
    path = coco / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    del content['annotations']
    path.write_text(json.dumps(content))
    metric = dict(type='CocoMetric', ann_file=str(path), format_only=True)
    check(coco, evaluator=metric, test_mode=True, classes=METAINFO['detection']['classes'])
    with pytest.raises(DataError, match='"annotations"'):
        check(coco, classes=METAINFO['detection']['classes'], filter_cfg=dict(filter_empty_gt=True))


def test_a_metric_that_reads_other_files_needs_no_iscrowd(coco):
    path = coco / 'annotations/instances_train2017.json'
    path.write_text(path.read_text().replace('"iscrowd"', '"is_crowd"'))
    classes = METAINFO['detection']['classes']
    check(coco, classes=classes, evaluator=dict(type='VOCMetric', metric='mAP'), test_mode=True)
    with pytest.raises(DataError, match='iscrowd'):
        check(coco, classes=classes, evaluator=[dict(type='CocoMetric', ann_file=str(path))])


def evaluated(kind, path):
    return dict(type=kind, ann_file=str(path), metric=['bbox', 'segm'])


def test_real_coco_passes(coco_root):
    for split in ('train', 'val'):
        for kind, name in (('CocoDataset', 'instances'), ('CocoPanopticDataset', 'panoptic')):
            file = f'annotations/{name}_{split}2017.json'
            folder = f'annotations/panoptic_{split}2017/'
            metric = evaluated('CocoMetric', coco_root / file)
            check(coco_root, kind, ann_file=file, data_prefix=dict(seg=folder), evaluator=metric)


def test_real_boxes_pass():
    root = SHARED / 'data/bccd/annotations'
    if not root.is_dir():
        pytest.skip('no ../shared/data/bccd here')
    classes = [
        record['name'] for record in json.loads((root / 'val.json').read_text())['categories']
    ]
    metric = dict(type='CocoMetric', ann_file=str(root / 'val.json'), metric='bbox')
    check(root, ann_file='train.json', classes=classes, filter_cfg=dict(filter_empty_gt=True))
    check(root, ann_file='val.json', classes=classes, evaluator=metric)
