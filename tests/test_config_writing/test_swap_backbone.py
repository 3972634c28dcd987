"""FocalNet as the backbone of configs of mmdet and mmseg."""

import pytest
from forked_tools import ROOT, run
from mmengine.config import Config

from mmfocalnet.archs import ARCHS, CHECKPOINTS
from mmfocalnet.cli.runner import check_model
from mmfocalnet.config_writing.base_config import base_reference, read_base
from mmfocalnet.config_writing.swap_backbone import pretrained_backbone, swap_backbone
from mmfocalnet.config_writing.trial import build_model, try_model
from mmfocalnet.errors import ConfigError

NARROW = dict(embed_dim=16, depths=[1, 1, 1, 1])
W = [16, 32, 64, 128]  # its widths


def swapped(name):
    return swap_backbone(read_base(name), **NARROW)


def value_at(cfg, key):
    for part in key.split('.'):
        cfg = cfg[int(part)] if isinstance(cfg, (list, tuple)) else cfg[part]
    return cfg


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco', {'neck.in_channels': W}),
        # Its neck reads the features from coarse to fine.
        ('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco', {'neck.in_channels': W[:0:-1]}),
        ('mmdet::yolox/yolox_s_8xb8-300e_coco', {'neck.in_channels': W[1:]}),
        ('mmdet::detr/detr_r50_8xb2-150e_coco', {'neck.in_channels': [128]}),
        ('mmdet::yolof/yolof_r50-c5_8xb8-1x_coco', {'neck.in_channels': 128}),
        ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco', {'neck.in_channels': W[1:]}),
        ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco', {'neck.in_channels': W}),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco', {'panoptic_head.in_channels': W}),
        (
            'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
            {
                'decode_head.in_channels': 128,
                'decode_head.c1_in_channels': 16,
                'auxiliary_head.in_channels': 64,
                'pretrained': None,
            },
        ),
        ('mmseg::encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512', {'decode_head.in_channels': W[1:]}),
        (
            'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
            {
                'decode_head.kernel_generate_head.in_channels': 128,
                'decode_head.kernel_update_head.0.in_channels': 512,
            },
        ),
        # The neck resizes four maps of one stride.
        ('mmseg::vit/vit_vit-b16_mln_upernet_8xb2-80k_ade20k-512x512', {'neck': None}),
        # Its backbone is in mmpretrain, which is not installed.
        (
            'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
            {'decode_head.in_channels': W, 'auxiliary_head.in_channels': 64},
        ),
        (
            'mmseg::bisenetv1/bisenetv1_r50-d32_4xb4-160k_cityscapes-1024x1024',
            {
                'backbone.backbone_cfg.type': 'FocalNet',
                'backbone.context_channels': tuple(W[1:]),
                'backbone.spatial_channels': (16, 16, 16, 32),
            },
        ),
    ],
)
def test_channels_follow_the_widths(name, expected):
    cfg = swapped(name).cfg
    for key, value in expected.items():
        assert value_at(cfg.model, key) == value, key
    check_model(cfg)


def test_images_are_normalized_as_in_pretraining():
    for name in ('mmdet::yolox/yolox_s_8xb8-300e_coco', 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco'):
        preprocessor = swapped(name).cfg.model.data_preprocessor
        assert preprocessor.mean == [123.675, 116.28, 103.53]
        assert preprocessor.std == [58.395, 57.12, 57.375]
        assert preprocessor.bgr_to_rgb


def test_sgd_becomes_the_published_optimizer_and_adamw_stays():
    detector = swapped('mmdet::ssd/ssd300_coco').cfg
    assert detector.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    assert detector.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0)
    assert detector.auto_scale_lr.base_batch_size == 16
    name = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco'
    assert swapped(name).cfg.optim_wrapper == read_base(name).optim_wrapper


def test_layer_decay_of_another_backbone_becomes_ours():
    name = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco'
    wrapper = swapped(name).cfg.optim_wrapper
    assert wrapper.constructor == 'FocalNetLayerDecayOptimizerConstructor'
    assert wrapper.paramwise_cfg == dict(decay_rate=0.95)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('mmdet::cornernet/cornernet_hourglass104_10xb5-crop511-210e-mstest_coco', '[4, 4]'),
        ('mmseg::san/san-vit-b16_coco-stuff164k-640x640', 'backbone'),
        ('mmdet::misc/d2_mask-rcnn_r50-caffe_fpn_ms-90k_coco', 'Detectron2Wrapper'),
        ('mmdet::atss/atss_r51_fpn_1x_coco', 'atss_r50_fpn_1x_coco.py'),
        ('nowhere::atss', 'nowhere'),
    ],
)
def test_what_cannot_be_done_raises(name, reason):
    with pytest.raises(ConfigError) as error:
        swapped(name)
    assert reason in str(error.value)


def test_checkpoints_are_those_of_the_recipes():
    for file in (ROOT / 'configs/_base_/backbones').glob('*.py'):
        for backbone in Config.fromfile(file).values():
            if isinstance(backbone, dict):
                assert backbone.init_cfg.checkpoint == CHECKPOINTS[backbone.arch]


@pytest.mark.parametrize('arch', ARCHS)
def test_pretrained_backbones(arch):
    if arch not in CHECKPOINTS:
        with pytest.raises(ConfigError, match='No checkpoint'):
            pretrained_backbone(arch)
        return
    settings = pretrained_backbone(arch)
    assert settings['init_cfg']['checkpoint'] == CHECKPOINTS[arch]
    assert ('focal_windows' in settings) == (ARCHS[arch]['focal_windows'] == 3 and 'l4' not in arch)


def test_tool_writes_a_config_that_resolves_to_the_swap(tmp_path):
    name = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
    done = run(
        'swap_backbone',
        name,
        '--arch',
        'tiny_srf',
        '--out',
        'new.py',
        folder=tmp_path,
        cwd=tmp_path,
    )
    assert 'new.py' in done.stdout
    expected = swap_backbone(read_base(name), **pretrained_backbone('tiny_srf')).cfg
    found = Config.fromfile(tmp_path / 'new.py')
    assert found.model.backbone == expected.model.backbone
    assert found.model.neck.in_channels == [96, 192, 384, 768]
    assert found.optim_wrapper.optimizer == expected.optim_wrapper.optimizer
    assert found.custom_imports == expected.custom_imports
    # It keeps what is there.
    again = run('swap_backbone', name, '--out', 'new.py', folder=tmp_path, cwd=tmp_path, code=2)
    assert '--out new.py' in again.stderr


def test_base_of_a_written_config(tmp_path):
    name = 'mmdet::atss/atss_r50_fpn_1x_coco'
    assert base_reference(name, 'new.py') == f'{name}.py'
    (tmp_path / 'base.py').touch()
    assert base_reference(str(tmp_path / 'base.py'), str(tmp_path / 'out/new.py')) == '../base.py'
    # MMEngine does not find the forked mmseg.
    base = base_reference('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', 'new.py')
    (tmp_path / 'new.py').write_text(f'_base_ = {base!r}')
    assert Config.fromfile(tmp_path / 'new.py').model.decode_head.num_classes == 150


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco',
        'mmseg::dmnet/dmnet_r50-d8_4xb4-80k_ade20k-512x512',
    ],
)
def test_swapped_models_train_and_predict(name):
    cfg = swapped(name).cfg
    try_model(cfg, build_model(cfg))
