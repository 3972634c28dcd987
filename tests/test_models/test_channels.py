"""A neck or head that does not take what the backbone gives is named with the right numbers."""

import pytest

from mmfocalnet import FocalNet
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.channels import check_channels

SMALL = dict(embed_dim=8, depths=[1, 1, 1, 1], focal_windows=3)


@pytest.fixture(scope='module')
def backbone():
    return FocalNet(**SMALL, out_indices=(1, 2, 3))


@pytest.mark.parametrize(
    'model',
    [
        dict(neck=dict(in_channels=[16, 32, 64]), bbox_head=dict(in_channels=256)),
        dict(neck=[dict(in_channels=[16, 32, 64]), dict(in_channels=256)]),
        dict(neck=dict(backbone_channel=5)),
        dict(decode_head=dict(in_channels=[16, 64], in_index=[0, 2])),
        dict(
            decode_head=[dict(in_channels=64, in_index=2)],
            auxiliary_head=[dict(in_channels=32, in_index=-2)],
        ),
        dict(panoptic_head=dict(in_channels=[16, 32, 64])),
        dict(decode_head=dict(in_channels=(16, 64), in_index=(0, 2))),
        dict(neck=dict(in_channels=(16, 32, 64), out_channels=8), rpn_head=dict(in_channels=8)),
        dict(neck=dict(in_channels=64)),
        dict(decode_head=dict(in_channels=64)),
    ],
)
def test_fitting_models_pass(model, backbone):
    check_channels(model, backbone)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            dict(neck=dict(in_channels=[8, 16, 32, 64])),
            r'model.neck.in_channels is \[8, 16, 32, 64\], but the backbone gives \[16, 32, 64\]',
        ),
        (dict(neck=[dict(in_channels=[1])]), r'model.neck.0.in_channels is \[1\]'),
        (dict(panoptic_head=dict(in_channels=[16, 32])), 'set it to .16, 32, 64.'),
        (
            dict(decode_head=dict(in_channels=[16, 32], in_index=[0, 2])),
            r'decode_head.in_channels .* gives \[16, 64\]',
        ),
        (
            dict(
                decode_head=dict(in_channels=[16, 32, 64], in_index=[0, 1, 2]),
                auxiliary_head=dict(in_channels=384, in_index=1),
            ),
            'auxiliary_head.in_channels is 384, but the backbone gives 32',
        ),
        (dict(decode_head=dict(in_channels=123)), 'in_channels is 123, but the backbone gives 64'),
        (
            dict(decode_head=dict(in_channels=64, in_index=7)),
            'in_index is 7, but the backbone gives 3 features: choose from 0 to 2',
        ),
        (dict(decode_head=dict(in_channels=[16, 32], in_index=[0])), r'gives \[16\]'),
        (
            dict(neck=dict(in_channels=[16, 32, 64], out_channels=8), rpn_head=dict(in_channels=4)),
            'model.rpn_head.in_channels is 4, but model.neck.out_channels is 8',
        ),
    ],
)
def test_others_are_named(model, message, backbone):
    with pytest.raises(ConfigError, match=message):
        check_channels(model, backbone)


PYRAMID = dict(neck=dict(type='SimpleFeaturePyramid', in_channels=[8]))
ANCHORS = dict(rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])))


@pytest.mark.parametrize(
    ('settings', 'anchors'),
    [
        (dict(depths=[1], patch_size=16), ANCHORS),
        (dict(depths=[1], patch_size=16), {}),
        (dict(depths=[1, 1, 1, 1], embed_dim=2, out_indices=(2,)), ANCHORS),
        (
            dict(depths=[1], patch_size=8),
            dict(bbox_head=dict(anchor_generator=dict(strides=[2, 4, 8, 16]))),
        ),
    ],
)
def test_one_map_of_stride_16_fits_a_simple_feature_pyramid(settings, anchors):
    backbone = FocalNet(**{**SMALL, **settings})
    check_channels({**PYRAMID, **anchors}, backbone)
    with pytest.raises(ConfigError, match=r'model.neck.in_channels is \[12\], .* set it to \[8\]'):
        check_channels(dict(neck=dict(PYRAMID['neck'], in_channels=[12]), **anchors), backbone)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, r'one map of stride 16, .* gives strides \[4, 8, 16, 32\]: .*out_indices=\(2,\)'),
        (dict(out_indices=(3,)), r'gives strides \[32\]: give model.backbone out_indices=\(2,\)'),
        (
            dict(depths=[1], patch_size=8),
            r"gives strides \[8\]: give model.backbone arch='base_iso",
        ),
    ],
)
def test_other_maps_do_not_fit_a_simple_feature_pyramid(settings, message):
    backbone = FocalNet(**{**SMALL, **settings})
    with pytest.raises(ConfigError, match=message):
        check_channels({**PYRAMID, **ANCHORS}, backbone)
