"""The published configs, with narrower models, train and test on a few images.

On images of COCO and ADE20K if ../shared/data has them, else on generated ones in their layout.
"""

import json
import re
import shutil

import pytest
from forked_tools import ROOT

REAL = ROOT.parent / 'shared/data'
CHANNELS = '[8,16,32,64]'
NARROW = [
    'model.backbone.init_cfg=None',
    'model.backbone.embed_dim=8',
    'model.backbone.depths=[1,1,1,1]',
    'train_dataloader.dataset.indices=2',
    'val_dataloader.dataset.indices=1',
    'test_dataloader.dataset.indices=1',
    'default_hooks.logger.interval=1',
]
EPOCH = [f'model.neck.in_channels={CHANNELS}', 'train_cfg.max_epochs=1']
ITERATION = [
    'train_cfg.max_iters=1',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
]
# Mask2Former jitters crops of 1024x1024.
SMALL_CROPS = [
    'model.data_preprocessor.batch_augments.0.size=(256,256)',
    'model.train_cfg.num_points=256',
    'train_dataloader.dataset.pipeline.4.scale=(256,256)',
    'train_dataloader.dataset.pipeline.5.crop_size=(256,256)',
    'val_dataloader.dataset.pipeline.1.scale=(320,320)',
]

pytestmark = pytest.mark.slow


def shallow(head):
    """A Mask2Former head of one layer each, on the narrow backbone."""
    return [
        f'model.{head}.in_channels={CHANNELS}',
        f'model.{head}.pixel_decoder.encoder.num_layers=1',
        f'model.{head}.transformer_decoder.num_layers=1',
    ]


# One layer each, and small images. Their features may have fewer pixels than the usual 900 queries.
SHALLOW_DINO = [
    'model.num_queries=100',
    'model.encoder.num_layers=1',
    'model.decoder.num_layers=1',
    'train_dataloader.dataset.pipeline.4.transforms.0.0.scales=[(200,320)]',
    'train_dataloader.dataset.pipeline.4.transforms.1.2.scales=[(200,320)]',
    'val_dataloader.dataset.pipeline.1.scale=(320,320)',
    'test_dataloader.dataset.pipeline.1.scale=(320,320)',
    'train_cfg.max_epochs=1',
]

FAMILIES = {
    'mask_rcnn/focalnet_t_1x': EPOCH,
    'mask_rcnn/focalnet_b_iso_1x': [
        'model.neck.in_channels=[8]',
        'model.backbone.depths=[1]',
        'train_cfg.max_epochs=1',
    ],
    'cascade_rcnn/focalnet_t_3x': EPOCH,
    'atss/focalnet_t_3x': ['model.neck.in_channels=[16,32,64]', 'train_cfg.max_epochs=1'],
    'sparse_rcnn/focalnet_t_3x': EPOCH,
    'dino/detrex_focalnet_t_4scale_12e': [
        'model.neck.in_channels=[16,32,64]',
        *SHALLOW_DINO,
    ],
    'dino/focalnet_l_fl4_5scale_12e': [f'model.neck.in_channels={CHANNELS}', *SHALLOW_DINO],
    'upernet/focalnet_t_160k_ade20k': [
        f'model.decode_head.in_channels={CHANNELS}',
        'model.auxiliary_head.in_channels=32',
        *ITERATION,
    ],
    'mask2former/focalnet_t_coco_panoptic': [
        *shallow('panoptic_head'),
        *SMALL_CROPS,
        *ITERATION,
    ],
    'mask2former/focalnet_t_coco_instance': [
        *shallow('panoptic_head'),
        *SMALL_CROPS,
        *ITERATION,
    ],
    'mask2former/focalnet_t_160k_ade20k_640': [
        *shallow('decode_head'),
        'model.decode_head.train_cfg.num_points=256',
        'val_dataloader.dataset.pipeline.1.scale=(320,320)',
        *ITERATION,
    ],
}


def as_coco(shapes, folder):
    """Copy the sample dataset with the categories of COCO: 80 things and 53 kinds of stuff."""
    from mmdet.datasets import CocoPanopticDataset

    shutil.copytree(shapes / 'coco', folder)
    things = CocoPanopticDataset.METAINFO['thing_classes']
    stuff = CocoPanopticDataset.METAINFO['stuff_classes']
    for path in (folder / 'annotations').glob('*.json'):
        content = json.loads(path.read_text())
        names = things if path.name.startswith('instances') else things + stuff
        content['categories'] = [
            {'id': number, 'name': name, 'isthing': int(name in things)}
            for number, name in enumerate(names, 1)
        ]
        path.write_text(json.dumps(content))


@pytest.fixture
def data(shapes, tmp_path):
    """A folder with data/coco and data/ade in the layout that the configs expect."""
    (tmp_path / 'data/ade').mkdir(parents=True)
    ade = tmp_path / 'data/ade/ADEChallengeData2016'
    if REAL.is_dir():
        (tmp_path / 'data/coco').symlink_to(REAL / 'coco')
        ade.symlink_to(REAL / 'ade')
    else:
        as_coco(shapes, tmp_path / 'data/coco')
        ade.symlink_to(shapes / 'ade')
    return tmp_path


@pytest.mark.parametrize('name', FAMILIES)
def test_trains_evaluates_saves_and_tests(name, data, forked_tool):
    config = ROOT / f'configs/{name}.py'
    work_dir = data / 'work'
    options = ('--work-dir', work_dir, '--cfg-options', *NARROW, *FAMILIES[name])
    out = forked_tool('train', config, *options, cwd=data, timeout=400).stdout
    assert re.search(r'\(train\) +(\[1\])?\[ *1/1\]', out)
    assert re.search(r'\(val\) +(\[1\])?\[1/1\]', out)
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    out = forked_tool('test', config, checkpoint, *options, cwd=data, timeout=400).stdout
    assert '(test) [1/1]' in out
