"""Annotation files, classes and heads that do not fit together are refused before training."""

import shutil

import pytest
from mmengine.registry import DefaultScope
from tool_runs import change

from mmfocalnet.datasets import METAINFO
from mmfocalnet.datasets.category_names import check_num_classes
from mmfocalnet.datasets.inspection import check_annotations
from mmfocalnet.errors import ConfigError, DataError

THINGS = METAINFO['detection']['classes']
FILE = 'annotations/instances_train2017.json'


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def coco(made, tmp_path):
    return shutil.copytree(made / 'coco', tmp_path / 'coco')


def check(root, kind='CocoDataset', evaluator=None, **settings):
    if 'classes' in settings:
        settings['metainfo'] = dict(classes=settings.pop('classes'))
    config = dict(type=kind, data_root=str(root), ann_file=FILE)
    check_annotations({**config, **settings}, evaluator)


def test_fitting_classes(coco):
    check(coco, classes=THINGS)
    check(coco, classes=THINGS[1:])  # a file may have more categories
    check(
        coco,
        'CocoPanopticDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        metainfo=METAINFO['panoptic'],
    )


@pytest.mark.parametrize(
    ('settings', 'tokens'),
    [
        (dict(classes=('circle', 'hexagon')), ['lacks "hexagon"']),
        (dict(classes=('square', 'circle')), ['order', '"circle", "square", "triangle"']),
        ({}, ['"person", "bicycle", "car", "motorcycle", ... (80 in all)']),
    ],
)
def test_other_categories_than_classes(coco, settings, tokens):
    with pytest.raises(DataError) as error:
        check(coco, **settings)
    assert all(token in str(error.value) for token in [FILE, *tokens])


def test_duplicate_categories(coco):
    path = coco / FILE
    path.write_text(path.read_text().replace('"name":"square"', '"name":"circle"'))
    with pytest.raises(DataError, match='"circle" more than once'):
        check(coco, classes=('circle', 'star'))


def test_a_string_as_classes(coco):
    with pytest.raises(ConfigError, match='comma'):
        check(coco, classes=('circle'))


def test_datasets_that_load_in_other_ways_are_not_checked(coco):
    from mmdet.datasets import CocoDataset

    class OwnFormat(CocoDataset):
        def parse_data_info(self, raw_data_info):
            return None

    wrong = dict(classes=('square', 'circle'))
    check(coco, OwnFormat, **wrong)
    check(coco, 'Objects365V1Dataset', **wrong)
    check(coco, 'V3DetDataset')
    check(coco, 'BaseDetDataset', ann_file='none.json')
    check(coco, ann_file='s3://bucket/instances.json')
    check(coco, ann_file=['a.json', 'b.json'])
    with pytest.raises(DataError, match='order'):
        check(coco, CocoDataset, **wrong)


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
def test_heads_with_the_classes_of_the_dataset(model):
    check_num_classes(THREE, model)


@pytest.mark.parametrize(
    ('model', 'token'),
    [
        (dict(bbox_head=dict(num_classes=80)), 'model.bbox_head.num_classes is 80'),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=2)])),
            'model.roi_head.bbox_head.1.num_classes is 2',
        ),
        (dict(roi_head=dict(mask_head=dict(num_classes=80))), 'mask_head.num_classes is 80'),
        (dict(decode_head=dict(num_classes=150)), 'model.decode_head.num_classes is 150'),
        (
            dict(panoptic_head=dict(num_things_classes=80, num_stuff_classes=53)),
            'num_things_classes + num_stuff_classes is 133',
        ),
    ],
)
def test_heads_with_another_number_of_classes(model, token):
    with pytest.raises(ConfigError) as error:
        check_num_classes(THREE, model)
    assert token in str(error.value)


def test_a_test_set_without_public_annotations(coco):
    path = coco / FILE
    change(path, lambda content: content.pop('annotations') and None)
    metric = dict(type='CocoMetric', ann_file=str(path), format_only=True)
    check(coco, evaluator=metric, test_mode=True, classes=THINGS)
    with pytest.raises(DataError, match='"annotations"'):
        check(coco, classes=THINGS, filter_cfg=dict(filter_empty_gt=True))


def test_metrics_that_do_not_read_the_file_need_no_iscrowd(coco):
    path = coco / FILE
    path.write_text(path.read_text().replace('"iscrowd"', '"is_crowd"'))
    check(coco, classes=THINGS, evaluator=dict(type='VOCMetric', metric='mAP'), test_mode=True)
    with pytest.raises(DataError, match='iscrowd'):
        check(coco, classes=THINGS, evaluator=[dict(type='CocoMetric', ann_file=str(path))])


@pytest.mark.parametrize('content', ['{"images": []}', '{"categories": [1]}', 'text'])
def test_files_in_another_format(coco, content):
    (coco / FILE).write_text(content)
    with pytest.raises(DataError, match=f'{FILE} .*COCO format'):
        check(coco)
