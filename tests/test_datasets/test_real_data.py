"""Real annotations, label maps and images, where ../shared/data has them, have no errors."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmfocalnet.datasets.inspection import check_annotations, inspect_dataset
from mmfocalnet.datasets.label_maps import check_label_maps

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / 'shared'


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize(
    ('kind', 'name'), [('CocoDataset', 'instances'), ('CocoPanopticDataset', 'panoptic')]
)
def test_coco(coco_root, kind, name, split):
    file = f'annotations/{name}_{split}2017.json'
    maps = f'annotations/panoptic_{split}2017/'
    dataset = dict(
        type=kind,
        data_root=str(coco_root),
        ann_file=file,
        data_prefix=dict(img=f'{split}2017/', seg=maps),
    )
    metric = dict(type='CocoMetric', ann_file=str(coco_root / file), metric=['bbox', 'segm'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_annotations(dataset, metric)
        report = inspect_dataset(dataset)
    assert report.findings.total(errors=True) == 0, report.findings.lines()
    assert report.images == len(list(Path(coco_root, f'{split}2017').iterdir()))
    assert report.counts.numbers.sum() > 0


def test_bccd():
    root = SHARED / 'data/bccd/annotations'
    if not root.is_dir():
        pytest.skip('no ../shared/data/bccd here')
    categories = json.loads((root / 'val.json').read_text())['categories']
    metainfo = dict(classes=[record['name'] for record in categories])
    metric = dict(type='CocoMetric', ann_file=str(root / 'val.json'), metric='bbox')
    with DefaultScope.overwrite_default_scope('mmdet'):
        for name, evaluator in (('train', None), ('val', metric)):
            path = str(root / f'{name}.json')
            check_annotations(dict(type='CocoDataset', ann_file=path, metainfo=metainfo), evaluator)


@pytest.mark.parametrize(('split', 'folder'), [('train', 'training'), ('val', 'validation')])
def test_ade20k(split, folder):
    root = SHARED / 'data/ade'
    if not root.is_dir():
        pytest.skip('no ../shared/data/ade here')
    cfg = Config.fromfile(ROOT / 'configs/upernet/focalnet_t_160k_ade20k.py')
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.data_root = str(root)
    with DefaultScope.overwrite_default_scope('mmseg'):
        report = inspect_dataset(dataset)
        check_label_maps(dataset)
    assert report.findings.total(errors=True) == 0, report.findings.lines()
    assert report.images == len(list((root / 'images' / folder).iterdir())) > 0
