"""Constructors with random valid arguments and with every kind of invalid value."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfocalnet import FocalModulation, FocalNet
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import MIXERS, SimpleFeaturePyramid

# Invalid for every argument.
JUNK = ['', 'x', '3', b'3', object(), {'a': 1}, {1}, math.nan, math.inf, 1j, len, [None], [[1]]]
NO_SWITCH = [*JUNK, 1, 0, 'yes', 1.0, []]
NO_COUNT = [*JUNK, 0, -1, True, 1.5, 2.0, []]
NO_RATE = [*JUNK, 1, -0.1, True]
NO_WORD = [*JUNK, 1, True, []]

INVALID_MODULATION = {
    'dim': [*NO_COUNT, None],
    'focal_window': [*NO_COUNT, None, 2, -3, [3]],
    'focal_level': [*JUNK, -1, True, 1.0, None, []],
    'focal_factor': [*JUNK, -2, 3, True, 2.0, None],
    'proj_drop': [*NO_RATE, None],
}
INVALID_COMPONENTS = {
    **{key: [*NO_WORD, None, 'Add', 'ALL'] for key in ('modulation', 'aggregate')},
    **{key: [*NO_SWITCH, None] for key in ('use_global_context', 'use_gates')},
}
INVALID_NET = {
    'arch': [*NO_WORD, 'tiny', 'Tiny_srf', ['tiny_srf']],
    'in_chans': [*NO_COUNT, None],
    'patch_size': [*NO_COUNT, [4]],
    'embed_dim': [*NO_COUNT, [8]],
    'depths': [*JUNK, [], 4, True, [0], [1, -1], [1, 1.0], [True]],
    'focal_levels': [*JUNK, -1, True, 1.0, [], [1], [1, 2, 3], [1, '1']],
    'focal_windows': [*NO_COUNT, 2, [3], [3, 3, 3], [3, 4], [3, None]],
    'focal_factor': INVALID_MODULATION['focal_factor'],
    'mlp_ratio': [*JUNK, 0, -1, 1e-9, True, None],
    'layerscale_value': [*JUNK, None, True],
    'mixer': [*NO_WORD, None, 'Pooling'],
    'out_indices': [*JUNK, [], -1, 2, True, [0, 2], [1, 0], [0, 0], [0.0]],
    'frozen_stages': [*JUNK, -2, 3, True, None, 1.0, []],
    'init_cfg': [*JUNK, [1], dict(type='Normal'), dict(type='Pretrained')],
    **{key: [*NO_RATE, None] for key in ('drop_rate', 'drop_path_rate')},
    **{key: [*NO_SWITCH, None] for key in ('patch_norm', 'use_checkpoint')},
    **dict.fromkeys(('use_conv_embed', 'use_postln', 'use_layerscale'), NO_SWITCH),
    **dict.fromkeys(('use_postln_in_modulation', 'normalize_modulator'), NO_SWITCH),
    **INVALID_COMPONENTS,
}
LEVELS = dict(dim=1, focal_window=1, focal_level=1)
CONSTRUCTORS = {
    FocalNet: (dict(depths=[1, 1], embed_dim=1), INVALID_NET),
    FocalModulation: (LEVELS, {**INVALID_MODULATION, **INVALID_COMPONENTS}),
    MIXERS['depthwise_conv']: (LEVELS, INVALID_MODULATION),
    MIXERS['multiscale_attention_first']: (LEVELS, INVALID_MODULATION),
    MIXERS['sliding_window_attention']: (
        dict(dim=1),
        {name: INVALID_MODULATION[name] for name in ('dim', 'proj_drop')},
    ),
    SimpleFeaturePyramid: (
        dict(in_channels=[4], out_channels=1),
        {
            'in_channels': [*JUNK, [], 4, [0], [6], [4, 8], [-4], [4.0], [True]],
            'out_channels': NO_COUNT,
            'num_outs': [*NO_COUNT, 3],
        },
    ),
}


@pytest.mark.parametrize(
    ('kind', 'argument'),
    [(kind, name) for kind, (_, invalid) in CONSTRUCTORS.items() for name in invalid],
)
def test_invalid_values_raise_with_the_name_of_the_argument(kind, argument):
    settings, invalid = CONSTRUCTORS[kind]
    kind(**settings)
    for value in invalid[argument]:
        with pytest.raises(ConfigError) as error:
            kind(**{**settings, argument: value})
        assert argument.rstrip('s') in str(error.value), value


SWITCH = st.sampled_from([True, False, np.True_])
SIZES = st.integers(1, 19)


def integers(*values):
    """Python and NumPy integers."""
    return st.sampled_from([*values, *map(np.int64, values)])


def per_stage(*values):
    return st.one_of(integers(*values), st.tuples(integers(*values), integers(*values)))


RATE = st.sampled_from([0, 0.5, np.float32(0.3)])
COMPONENTS = dict(
    modulation=st.sampled_from(['multiply', 'add']),
    aggregate=st.sampled_from(['all', 'top']),
    use_global_context=SWITCH,
    use_gates=SWITCH,
    use_postln_in_modulation=SWITCH,
    normalize_modulator=SWITCH,
)
NET = st.fixed_dictionaries(
    dict(depths=st.just([1, np.int64(2)]), embed_dim=integers(1, 2, 9)),
    optional=dict(
        in_chans=integers(1, 3, 4),
        patch_size=integers(1, 2, 4, 5),
        focal_levels=per_stage(0, 1, 3),
        focal_windows=per_stage(1, 3, 7),
        focal_factor=integers(0, 2, 4),
        mlp_ratio=st.sampled_from([1, 2.5, np.float64(4)]),
        drop_rate=RATE,
        drop_path_rate=RATE,
        patch_norm=SWITCH,
        use_conv_embed=SWITCH,
        use_postln=SWITCH,
        use_layerscale=SWITCH,
        layerscale_value=st.sampled_from([0, 1e-4, -1]),
        mixer=st.sampled_from(sorted(MIXERS)),
        out_indices=st.sampled_from([None, 0, (0, 1), [1], np.int64(0)]),
        frozen_stages=integers(-1, 0, 1, 2),
        use_checkpoint=SWITCH,
        **COMPONENTS,
    ),
)
MODULATION = st.fixed_dictionaries(
    dict(dim=integers(1, 2, 9), focal_window=integers(1, 3, 7), focal_level=integers(0, 1, 3)),
    optional=dict(focal_factor=integers(0, 2, 4), proj_drop=RATE, bias=SWITCH, **COMPONENTS),
)
# Valid arguments that do not fit together.
CONFLICTS = ('use_global_context=False', 'patch_size=4', 'mixer=')


def build(kind, settings):
    """Build a module; None if its arguments do not fit together."""
    try:
        return kind(**settings)
    except ConfigError as error:
        assert any(conflict in str(error) for conflict in CONFLICTS)
        return None


@pytest.mark.fuzz
@given(settings=NET, height=SIZES, width=SIZES, batch=st.integers(0, 2), training=st.booleans())
def test_networks_with_valid_arguments(settings, height, width, batch, training):
    net = build(FocalNet, settings)
    if net is None:
        return
    net.train(training)
    outs = net(torch.rand(batch, net.patch_embed.proj.in_channels, height, width))
    for out, stage in zip(outs, net.out_indices, strict=True):
        stride = net.patch_embed.patch_size * 2**stage
        size = -(-height // stride), -(-width // stride)
        assert out.shape == (batch, net.num_features[stage], *size)
        assert out.isfinite().all()


@pytest.mark.fuzz
@given(
    settings=MODULATION,
    mixer=st.sampled_from(['focal_modulation', 'pooling', 'global_pooling']),
    shape=st.tuples(st.integers(0, 2), SIZES, SIZES),
)
def test_modulations_with_valid_arguments(settings, mixer, shape):
    operator = build(MIXERS[mixer], settings)
    if operator is not None:
        out = operator.eval()(torch.rand(*shape, int(settings['dim'])))
        assert out.shape == (*shape, settings['dim'])
        assert out.isfinite().all()


@pytest.mark.fuzz
@given(channels=integers(4, 8), outputs=integers(4, 6), height=SIZES, width=SIZES)
def test_pyramids_with_valid_arguments(channels, outputs, height, width):
    neck = SimpleFeaturePyramid(in_channels=[channels], out_channels=5, num_outs=outputs)
    outs = neck([torch.rand(1, channels, height, width)])
    sizes = [tuple(-(-(4 * side) // 2**i) for side in (height, width)) for i in range(outputs)]
    assert [out.shape for out in outs] == [(1, 5, *size) for size in sizes]
