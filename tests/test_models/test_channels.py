"""Channels of necks and heads that do not fit the backbone raise, with the right numbers."""

import pytest

from mmfocalnet import FocalNet
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import channels
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
    ('model', 'key', 'expected'),
    [
        (
            dict(neck=dict(type='FPN', in_channels=[8, 16, 32, 64])),
            'model.neck.in_channels',
            '[16, 32, 64]',
        ),
        (
            dict(neck=[dict(type='mmdet.FPN', in_channels=[1])]),
            'model.neck.0.in_channels',
            '[16, 32, 64]',
        ),
        (dict(panoptic_head=dict(in_channels=[16])), 'model.panoptic_head.', '[16, 32, 64]'),
        (
            dict(decode_head=dict(in_channels=[16, 32], in_index=[0, 2])),
            'model.decode_head.in_channels',
            '[16, 64]',
        ),
        (
            dict(
                decode_head=dict(in_channels=[16, 32, 64], in_index=[0, 1, 2]),
                auxiliary_head=dict(in_channels=384, in_index=1),
            ),
            'model.auxiliary_head.in_channels',
            '32',
        ),
        (dict(decode_head=dict(in_channels=123)), 'model.decode_head.in_channels', '64'),
        (
            dict(decode_head=dict(in_channels=[64, 32, 16], in_index=[0, 1, 2])),
            'model.decode_head.in_channels',
            '[16, 32, 64]',
        ),
        (
            dict(neck=dict(type='FPN', in_channels=[64, 32, 16])),
            'model.neck.in_channels',
            '[16, 32, 64]',
        ),
        (dict(decode_head=dict(in_channels=64, in_index=7)), 'model.decode_head.in_index', '2'),
        (dict(decode_head=dict(in_channels=[16, 32], in_index=[0])), 'decode_head.', '[16]'),
        (
            dict(
                neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=8),
                rpn_head=dict(in_channels=4),
            ),
            'model.rpn_head.in_channels',
            '8',
        ),
    ],
    ids=str,
)
def test_other_channels_raise(model, key, expected, backbone):
    with pytest.raises(ConfigError) as error:
        check_channels(model, backbone)
    assert key in str(error.value)
    assert str(error.value).endswith(f' {expected}.')


def test_channels_of_unknown_necks_warn(backbone, monkeypatch):
    logged = []
    monkeypatch.setattr(channels, 'print_log', lambda text, **_: logged.append(text))
    check_channels(dict(neck=dict(type='YOLOV3Neck', in_channels=[64, 32, 16])), backbone)
    model = dict(neck=dict(type='Mixer', out_channels=8), rpn_head=dict(in_channels=4))
    check_channels(model, backbone)
    assert not logged
    check_channels(dict(neck=dict(type='Mixer', in_channels=[64, 16, 32])), backbone)
    assert len(logged) == 1 and 'model.neck.in_channels' in logged[0]


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
def test_simple_feature_pyramid_with_a_fitting_map(settings, anchors):
    backbone = FocalNet(**{**SMALL, **settings})
    check_channels({**PYRAMID, **anchors}, backbone)
    with pytest.raises(ConfigError, match=r'model.neck.in_channels is \[12\]'):
        check_channels(dict(neck=dict(PYRAMID['neck'], in_channels=[12]), **anchors), backbone)


@pytest.mark.parametrize(
    ('settings', 'strides', 'fix'),
    [
        ({}, '[4, 8, 16, 32]', 'out_indices=(2,)'),
        (dict(out_indices=(3,)), '[32]', 'out_indices=(2,)'),
        (dict(depths=[1], patch_size=8), '[8]', 'base_iso'),
    ],
)
def test_simple_feature_pyramid_with_other_maps_raises(settings, strides, fix):
    backbone = FocalNet(**{**SMALL, **settings})
    with pytest.raises(ConfigError) as error:
        check_channels({**PYRAMID, **ANCHORS}, backbone)
    assert strides in str(error.value) and fix in str(error.value)
