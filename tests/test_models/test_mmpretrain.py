"""FocalNet as a backbone of mmpretrain's classifier, if mmpretrain can be imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet import FocalNetClassifier
from mmfocalnet.datasets import make_shape_crops

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(type='FocalNet', embed_dim=8, depths=[1, 1, 1, 1], focal_windows=3, drop_path_rate=0.0)
# mmpretrain's config of Swin-T, with another backbone and the four classes of the crops.
CONFIG = """
_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
custom_imports = dict(imports=['mmfocalnet'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, out_indices=[3], **{backbone}),
    head=dict(num_classes=4, in_channels=64))
data_preprocessor = dict(num_classes=4)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
data = dict(_delete_=True, type='CustomDataset', data_root={crops!r}, pipeline=pipeline)
train_dataloader = dict(dataset=dict(data_prefix='train', **data), **loader)
val_dataloader = dict(dataset=dict(data_prefix='val', **data), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2))
param_scheduler = []
"""


@pytest.fixture(scope='module')
def mmpretrain():
    """mmpretrain with registered models."""
    try:
        import mmpretrain
        import mmpretrain.models  # registers them
    except Exception as error:  # for example of torchvision for another build of torch
        pytest.skip(f'mmpretrain cannot be imported: {type(error).__name__}: {error}')
    return mmpretrain


@pytest.fixture
def theirs(mmpretrain):
    """mmpretrain's classifier with five classes and random weights."""
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(TINY, out_indices=[3]),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=64, topk=(1,)),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def checkpoint(theirs, tmp_path):
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / 'theirs.pth')
    return dict(type='Pretrained', checkpoint=str(tmp_path / 'theirs.pth'))


def test_logits_agree(theirs):
    ours = FocalNetClassifier(dict(TINY, out_indices=[3]), num_classes=5).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 40, 33)
    torch.testing.assert_close(ours(images), theirs(images))


def test_checkpoint_loads_into_our_classifier(theirs, checkpoint):
    ours = FocalNetClassifier(dict(TINY, out_indices=[3]), num_classes=5, init_cfg=checkpoint)
    ours.init_weights()
    images = torch.randn(2, 3, 40, 33)
    torch.testing.assert_close(ours.eval()(images), theirs(images))


def test_checkpoint_loads_into_a_dense_backbone_with_other_windows(theirs, checkpoint):
    dense = MODELS.build(dict(TINY, focal_windows=9, init_cfg=checkpoint))
    dense.init_weights()
    images = torch.randn(2, 3, 40, 33)
    torch.testing.assert_close(dense.eval()(images)[3], theirs.backbone(images)[0])


def test_train_test_and_visualize(mmpretrain, tmp_path):
    crops = make_shape_crops(tmp_path / 'crops', 4, 4, size=32)
    config = tmp_path / 'tiny.py'
    config.write_text(CONFIG.format(backbone=TINY, crops=str(crops)))

    def run(*command):
        command = [sys.executable, *map(str, command), '--work-dir', str(tmp_path)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    assert 'accuracy/top1' in run('tools/train.py', config)
    drawn = tmp_path / 'drawn'
    out = run('tools/test.py', config, tmp_path / 'iter_2.pth', '--show-dir', drawn)
    assert 'accuracy/top1' in out
    assert len(list(drawn.rglob('*.png'))) == len(list((crops / 'val').rglob('*.jpg')))
