"""Malformed annotation files are refused, or mmdet trains and evaluates with them."""

import contextlib
import copy
import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS, METRICS, DefaultScope

from mmfocalnet.compat.panopticapi import rgb2id
from mmfocalnet.datasets import METAINFO, make_shapes
from mmfocalnet.datasets.inspection import check_annotations, inspect_dataset
from mmfocalnet.errors import DataError

pytestmark = pytest.mark.fuzz
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


@st.composite
def damaged(draw, sound):
    """A copy of a file's content with junk at one to three places."""
    content = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        # Draw the depth first, otherwise nearly all places are coordinates.
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


def inspect(dataset, evaluator):
    """All findings as text, None if there are errors; check_annotations must find the file's."""
    texts, numbers = [''], [1]
    with contextlib.suppress(DataError):
        reports = [inspect_dataset(dataset, evaluator, with_images=w) for w in (False, True)]
        texts = ['\n'.join(report.findings.lines()) for report in reports]
        numbers = [report.findings.total(errors=True) for report in reports]
    if numbers[0]:
        with pytest.raises(DataError) as error:
            check_annotations(dataset, evaluator)
        assert dataset['ann_file'] in str(error.value)
    else:
        check_annotations(dataset, evaluator)
    assert '\x1b' not in texts[-1]
    texts[-1].encode()
    return None if numbers[-1] else texts[-1]


def score_instances(config, metric):
    """The score of perfect boxes and masks."""
    pipeline = [step for step in config['pipeline'] if step['type'] != 'RandomFlip']
    dataset = DATASETS.build({**config, 'test_mode': True, 'pipeline': pipeline})
    metric = METRICS.build(metric)
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
    return metric.evaluate(len(dataset))['coco/bbox_mAP']


def score_panoptic(config, metric):
    """The score of perfect segments."""
    dataset = DATASETS.build({**config, 'test_mode': True, 'pipeline': []})
    metric = METRICS.build(metric)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        ids = rgb2id(cv2.imread(info['seg_map_path'])[..., ::-1])
        predicted = np.full(ids.shape, len(dataset.metainfo['classes']))
        for place, segment in enumerate(info['segments_info']):
            predicted[ids == segment['id']] = segment['category'] + 1000 * place
        sample = dict(
            img_id=info['img_id'], img_path=info['img_path'], ori_shape=ids.shape,
            pred_panoptic_seg=dict(sem_seg=torch.tensor(predicted)[None]),
        )  # fmt: skip
        metric.process(None, [sample])
    return metric.evaluate(len(dataset))['coco_panoptic/PQ'] / 100


def configs(kind, coco, path):
    """Configs of a dataset and of the metric that reads the same file."""
    maps = f'{coco}/annotations/panoptic_val2017/'
    panoptic = kind == 'panoptic'
    load = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
    dataset = dict(
        type='CocoPanopticDataset' if panoptic else 'CocoDataset',
        ann_file=path,
        data_prefix=dict(img=f'{coco}/val2017/', **(dict(seg=maps) if panoptic else {})),
        metainfo=METAINFO['panoptic' if panoptic else 'detection'],
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadPanopticAnnotations') if panoptic else load,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
        serialize_data=False,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    if panoptic:
        return dataset, dict(type='CocoPanopticMetric', ann_file=path, seg_prefix=maps)
    return dataset, dict(type='CocoMetric', ann_file=path, metric=['bbox', 'segm'])


@pytest.mark.parametrize(
    ('kind', 'score'), [('instances', score_instances), ('panoptic', score_panoptic)]
)
def test_malformed_files_are_refused_or_used(coco, tmp_path, kind, score):
    sound = json.loads((coco / f'annotations/{kind}_val2017.json').read_text())
    path = str(tmp_path / 'junk.json')
    dataset, metric = configs(kind, coco, path)
    outcomes = Counter()

    @given(damaged(sound))
    def check(content):
        with open(path, 'w') as file:
            json.dump(content, file)
        trained, evaluated = inspect(dataset, None), inspect(dataset, metric)
        outcomes['refused'] += trained is None
        if trained is not None:
            outcomes['trained'] += 1
            items = list(DATASETS.build(dataset))
            assert items and None not in items
        if trained is not None and evaluated is not None:
            outcomes['evaluated'] += 1
            result = score(dataset, metric)
            if not evaluated and not any('ignore' in record for record in content['annotations']):
                assert result == 1

    with DefaultScope.overwrite_default_scope('mmdet'):
        check()
    assert outcomes['refused'] and outcomes['trained'] and outcomes['evaluated'], outcomes
