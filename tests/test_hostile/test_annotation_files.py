"""Junk in annotation files is reported, or mmdet trains and evaluates with it."""

import copy
import json
import os

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS, METRICS, DefaultScope

from mmfocalnet.compat.panopticapi import rgb2id
from mmfocalnet.datasets import METAINFO, make_shapes
from mmfocalnet.datasets.inspection import inspect_dataset
from mmfocalnet.errors import DataError

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
PANOPTIC_PIPELINE = [PIPELINE[0], dict(type='LoadPanopticAnnotations'), *PIPELINE[2:]]
JUNK = (
    *(None, True, False, 0, 1, 2, -1, 0.5, 1.0, -0.0, 77, 10**9, 2**31, 2**63, 10**400, 1e300),
    *(1e-300, float('nan'), float('inf'), '', '1', 'no', 'a\x00\x1b[31m', '\ud800', 'x' * 10**4),
    *([], [[]], [[[]]], {}, [{}], [None], [1], ['a'], [1, 1, 9, 9], [1e308] * 4, [-5, -5, 1e4, 9]),
    *([[1, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9]], [[0] * 6], [[1e9] * 6], [[float('nan')] * 6]),
    *([[-1e5, 1, 1e5, 1, 9, 9]], [['1'] * 6], [[True] * 6], {'size': [64, 64]}, {'counts': 'a'}),
    *({'size': [64, 64], 'counts': counts} for counts in ('', 'P', 'oooo1', '\x7f', [4096], [1e9])),
    *({'size': size, 'counts': [4096]} for size in ([64, 64], [2**31, 1], [1, 4096], ['64', 64])),
)


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 1, 2, size=64) / 'coco'


@pytest.fixture(scope='module')
def sound(coco):
    """The content of both files by their kind."""
    return {
        kind: json.loads((coco / f'annotations/{kind}_val2017.json').read_text())
        for kind in ('instances', 'panoptic')
    }


@st.composite
def damaged(draw, sound):
    """A copy with junk at one to three places."""
    content = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        # First the depth, or nearly all places were coordinates.
        node, key = content, draw(st.sampled_from(sorted(content)))
        while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 4)):
            node = node[key]
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            key = draw(st.sampled_from(keys))
        action = draw(st.sampled_from(('junk', 'junk', 'junk', 'remove', 'repeat')))
        if action == 'junk':
            node[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif action == 'remove':
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        if not content:
            break
    return content


def passes(dataset, evaluator, with_images=False):
    """What the inspection finds, or None if there are errors."""
    try:
        findings = inspect_dataset(dataset, evaluator, with_images=with_images).findings
    except DataError:
        return None
    text = '\n'.join(findings.lines())
    assert '\x1b' not in text
    text.encode()
    return None if findings.count(errors=True) else text


def write(content, folder):
    path = str(folder / 'junk.json')
    with open(path, 'w') as file:
        json.dump(content, file)
    return path


def evaluate(dataset, path):
    """The score of perfect boxes and masks."""
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(ann_file=path, metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        sample = item['data_samples']
        truth = sample.gt_instances
        masks = truth.masks.to_tensor(torch.bool, 'cpu')
        predictions = dict(
            bboxes=truth.bboxes.tensor, labels=truth.labels, masks=masks,
            scores=torch.ones(len(truth)),
        )  # fmt: skip
        metric.process(None, [{**sample.metainfo, 'pred_instances': predictions}])
    return metric.evaluate(len(dataset))


@given(data=st.data())
def test_junk_in_boxes_and_masks(coco, sound, tmp_path, data, count):
    count()
    content = data.draw(damaged(sound['instances']))
    path = write(content, tmp_path)
    dataset = dict(
        type='CocoDataset', ann_file=path, data_prefix=dict(img=f'{coco}/val2017/'),
        metainfo=METAINFO['detection'], pipeline=PIPELINE, serialize_data=False,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )  # fmt: skip
    metric = dict(type='CocoMetric', metric=['bbox', 'segm'], ann_file=path)
    images = set(os.listdir(coco / 'val2017'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        trained, evaluated = passes(dataset, None), passes(dataset, metric)
        # Images are not looked at here.
        if trained is None or not images.issuperset(i['file_name'] for i in content['images']):
            return
        items = list(DATASETS.build(dataset))
        assert items and None not in items
        if evaluated is None:
            return
        pipeline = [*PIPELINE[:2], PIPELINE[3]]
        built = DATASETS.build({**dataset, 'test_mode': True, 'pipeline': pipeline})
        scores = evaluate(built, path)
        if not evaluated and not any('ignore' in record for record in content['annotations']):
            assert scores['coco/bbox_mAP'] == 1, scores


def evaluate_panoptic(dataset, metric):
    """The score of perfect segments."""
    metric = METRICS.build(metric)
    metric.dataset_meta = dataset.metainfo
    for number in range(len(dataset)):
        info = dataset.get_data_info(number)
        ids = rgb2id(cv2.imread(info['seg_map_path'])[..., ::-1])
        predicted = np.full(ids.shape, len(dataset.metainfo['classes']))
        for place, segment in enumerate(info['segments_info']):
            predicted[ids == segment['id']] = segment['category'] + 1000 * place
        sample = dict(
            img_id=info['img_id'], img_path=info['img_path'], ori_shape=ids.shape,
            pred_panoptic_seg=dict(sem_seg=torch.tensor(predicted)[None]),
        )  # fmt: skip
        metric.process(None, [sample])
    return metric.evaluate(len(dataset))


@given(data=st.data())
def test_junk_in_panoptic_files(coco, sound, tmp_path, data, count):
    count()
    content = data.draw(damaged(sound['panoptic']))
    path = write(content, tmp_path)
    maps = f'{coco}/annotations/panoptic_val2017/'
    dataset = dict(
        type='CocoPanopticDataset', ann_file=path, metainfo=METAINFO['panoptic'],
        data_prefix=dict(img=f'{coco}/val2017/', seg=maps), pipeline=PANOPTIC_PIPELINE,
        serialize_data=False, filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )  # fmt: skip
    metric = dict(type='CocoPanopticMetric', ann_file=path, seg_prefix=maps)
    with DefaultScope.overwrite_default_scope('mmdet'):
        trained = passes(dataset, None, with_images=True)
        evaluated = passes(dataset, metric, with_images=True)
        if trained is not None:
            items = list(DATASETS.build(dataset))
            assert items and None not in items
        if evaluated is not None:
            built = DATASETS.build({**dataset, 'test_mode': True, 'pipeline': []})
            score = evaluate_panoptic(built, metric)['coco_panoptic/PQ']
            assert evaluated or score == 100
