"""Any arguments and any input: right in shape, or one sentence that names an argument."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import MODELS

from mmfocalnet import FocalModulation, FocalNet
from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.models import MIXERS, SimpleFeaturePyramid

HUGE = (2**31, 10**9, 10**18, 10**5000)
# Whatever is never right where a number, a switch or a name is wanted.
JUNK = [
    *('', 'x', '3', b'3', object(), {}, {'a': 1}, {1}, float('nan'), math.inf, -math.inf, 1j),
    *(range(0), len, int, [None], [[]], [[1]], torch.ones(2), np.ones(3), 'a\nb', 'x' * 1000),
]
SWITCH = st.sampled_from([True, False, np.True_])
NO_SWITCH = [*JUNK, 1, 0, 'yes', 1.0, []]
NO_COUNT = [*JUNK, 0, -1, True, 1.5, 2.0, None, [], *HUGE]


def whole(*values):
    """These numbers, now and then as NumPy has them."""
    return st.sampled_from([*values, *map(np.int64, values)])


def per_stage(*values):
    """One for all three or fewer stages, or one each; the depths are drawn to fit."""
    return st.one_of(whole(*values), st.lists(whole(*values), min_size=2, max_size=2), st.none())


def none_or(strategy):
    return st.one_of(st.none(), strategy)


RATE, NO_RATE = st.sampled_from([0, 0.0, 0.5, np.float32(0.3)]), [*JUNK, 1, 1.0, -0.1, True, None]
# Argument: right values, wrong ones.
OF_MODULATION = {
    'dim': (whole(1, 2, 8, 9), NO_COUNT),
    'focal_window': (whole(1, 3, 7), [*NO_COUNT, 2, -3, [3]]),
    'focal_level': (whole(0, 1, 3), [*JUNK, -1, True, 1.0, None, [], *HUGE]),
    'focal_factor': (whole(0, 2, 4), [*JUNK, -2, 3, True, 2.0, None, *HUGE]),
    'proj_drop': (RATE, NO_RATE),
}
SWITCHES = ('use_postln_in_modulation', 'normalize_modulator', 'use_global_context', 'use_gates')
COMPONENTS = {
    'bias': (SWITCH, [*NO_SWITCH, None]),
    'modulation': (st.sampled_from(['multiply', 'add']), [*JUNK, None, 1, 'Add', True]),
    'aggregate': (st.sampled_from(['all', 'top']), [*JUNK, None, 0, 'ALL', []]),
    **{name: (SWITCH, [*NO_SWITCH, None]) for name in SWITCHES},
}
OF_NET = {
    'embed_dim': (none_or(whole(1, 2, 8, 9)), [*JUNK, 0, -8, True, 8.0, [], [8], *HUGE]),
    'depths': (
        st.just([1, np.int64(2)]),
        [*JUNK, [], (), 4, True, [0], [1, -1], [1, 1.0], [1, '1'], [True], [10**9], [1] * 5000],
    ),
    'in_chans': (whole(1, 3, 4), NO_COUNT),
    'patch_size': (none_or(whole(1, 2, 4, 5)), [*JUNK, 0, -4, True, 4.0, [], [4], *HUGE]),
    'focal_levels': (
        per_stage(0, 1, 3),
        [*JUNK, -1, True, 1.0, [], [1], [1, 2, 3], [1, None], [1, '1'], *HUGE],
    ),
    'focal_windows': (
        per_stage(1, 3, 7),
        [*JUNK, 0, 2, -3, True, 3.0, '33', [], [3], [3, 3, 3], [3, 4], [3, None], *HUGE],
    ),
    'focal_factor': OF_MODULATION['focal_factor'],
    'mlp_ratio': (
        st.sampled_from([1, 2.5, 4, np.float64(1)]),
        [*JUNK, 0, -1, 1e-9, 1e300, True, None, *HUGE],
    ),
    'drop_rate': (RATE, NO_RATE),
    'drop_path_rate': (RATE, NO_RATE),
    'layerscale_value': (st.sampled_from([0, 1e-4, 1, -1]), [*JUNK, 1e300, None, True, *HUGE]),
    'patch_norm': (SWITCH, [*NO_SWITCH, None]),
    'use_checkpoint': (SWITCH, [*NO_SWITCH, None]),
    **{
        name: (none_or(SWITCH), NO_SWITCH)
        for name in ('use_conv_embed', 'use_postln', 'use_layerscale', *SWITCHES[:2])
    },
    **{name: COMPONENTS[name] for name in ('modulation', 'aggregate', *SWITCHES[2:])},
    'mixer': (st.sampled_from(sorted(MIXERS)), [*JUNK, None, 1, [], 'Pooling']),
    'out_indices': (
        none_or(st.sampled_from([0, 1, (0, 1), [1], np.int64(0)])),
        [*JUNK, [], -1, 2, True, [0, 2], [1, 0], [0, 0], [0.0], [None], 10**9],
    ),
    'frozen_stages': (whole(-1, 0, 1, 2), [*JUNK, -2, 3, True, None, 1.0, [], *HUGE]),
    'arch': (
        st.none(),
        [*JUNK, 0, True, [], 'tiny', 'tiny_lfr', 'Tiny_srf', ['tiny_srf'], 'tiny_srf\n'],
    ),
    'init_cfg': (st.none(), [*JUNK, 'x.pth', [1], dict(type='Normal'), dict(type='Pretrained')]),
}
OF_PYRAMID = {
    'in_channels': (
        st.sampled_from([[4], (8,), [np.int64(4)]]),
        [*JUNK, [], 4, [0], [6], [4, 8], [-4], [4.0], [True], [None], [2**40]],
    ),
    'out_channels': (whole(1, 5), NO_COUNT),
    'num_outs': (whole(4, 6), [*NO_COUNT, 3]),
}


@st.composite
def arguments(draw, table, always=()):
    """Arguments out of a table, and which of them are wrong: mostly none, one or two."""
    names = draw(st.lists(st.sampled_from(sorted(table)), unique=True, max_size=8))
    wrong = draw(st.sets(st.sampled_from(names), max_size=2)) if names else set()
    names = [*dict.fromkeys([*always, *names])]
    values = {
        name: draw(st.sampled_from(table[name][1]) if name in wrong else table[name][0])
        for name in names
    }
    return values, wrong


def built(make, given_arguments, wrong, misfits=()):
    """What is made of the arguments; None where a sentence says what is wrong with them."""
    try:
        made = make(**given_arguments)
    except UserError as error:
        message = str(error)
        assert '\n' not in message and len(message) < 1000
        # Two things may be wrong, one of them that arguments do not go together.
        reasons = [*(name.rstrip('s') for name in wrong), *misfits]
        assert any(reason in message for reason in reasons), (message, given_arguments)
        return None
    assert not wrong, given_arguments
    return made


SMALLEST = {
    FocalNet: (OF_NET, dict(depths=[1, 1], embed_dim=1)),
    FocalModulation: (OF_MODULATION | COMPONENTS, dict(dim=1, focal_window=1, focal_level=1)),
    **{
        MIXERS[kind]: (OF_MODULATION, dict(dim=1, focal_window=1, focal_level=1))
        for kind in ('depthwise_conv', 'multiscale_attention_first', 'multiscale_attention_later')
    },
    MIXERS['sliding_window_attention']: (
        {name: OF_MODULATION[name] for name in ('dim', 'proj_drop')},
        dict(dim=1),
    ),
    SimpleFeaturePyramid: (OF_PYRAMID, dict(in_channels=[4], out_channels=1)),
}


@pytest.mark.parametrize('kind', SMALLEST)
def test_every_wrong_value_alone_is_refused(kind, count):
    table, smallest = SMALLEST[kind]
    built(kind, smallest, set())
    for name, (_, wrong) in table.items():
        for value in wrong:
            count()
            assert built(kind, {**smallest, name: value}, {name}) is None


SIZES = st.integers(1, 19)
NO_CONTEXT = 'leaves no context'


@given(drawn=arguments(OF_NET, ('depths', 'embed_dim')), height=SIZES, width=SIZES, data=st.data())
def test_a_net_works_or_says_why_not(drawn, height, width, data, count):
    count()
    misfits = (NO_CONTEXT, 'is defined for patch_size=4 only', 'mixer=')
    net = built(FocalNet, *drawn, misfits)
    if net is None:
        return
    net.train(data.draw(st.booleans()))
    batch = data.draw(st.integers(0, 2))
    with torch.set_grad_enabled(data.draw(st.booleans())):
        outs = net(torch.rand(batch, net.patch_embed.proj.in_channels, height, width))
    assert len(outs) == len(net.out_indices)
    for out, stage in zip(outs, net.out_indices, strict=True):
        stride = net.patch_embed.patch_size * 2**stage
        size = -(-height // stride), -(-width // stride)
        assert out.shape == (batch, net.num_features[stage], *size)
        assert out.isfinite().all()


@given(
    drawn=arguments(OF_MODULATION | COMPONENTS, ('dim', 'focal_window', 'focal_level')),
    kind=st.sampled_from(['focal_modulation', 'pooling', 'global_pooling']),
    shape=st.tuples(st.integers(0, 2), SIZES, SIZES),
)
def test_a_modulation_works_or_says_why_not(drawn, kind, shape, count):
    count()
    settings, wrong = drawn
    if kind == 'global_pooling':
        wrong = wrong - {'focal_level'}  # of which it has none
    op = built(MIXERS[kind], settings, wrong, [NO_CONTEXT])
    if op is not None:
        check_mixer(op, settings['dim'], shape)


@given(
    drawn=arguments(OF_MODULATION, ('dim', 'focal_window', 'focal_level')),
    kind=st.sampled_from(sorted(set(MIXERS) - {'focal_modulation', 'pooling', 'global_pooling'})),
    shape=st.tuples(st.integers(0, 2), SIZES, SIZES),
)
def test_a_mixer_works_or_says_why_not(drawn, kind, shape, count):
    count()
    settings, wrong = drawn
    if kind == 'sliding_window_attention':  # which has nothing but these
        settings = {name: settings[name] for name in ('dim', 'proj_drop') if name in settings}
        wrong = wrong & settings.keys()
    op = built(MIXERS[kind], settings, wrong)
    if op is not None:
        check_mixer(op, settings['dim'], shape)


def check_mixer(op, dim, shape):
    out = op.eval()(torch.rand(*shape, int(dim)))
    assert out.shape == (*shape, dim)
    assert out.isfinite().all()


@given(drawn=arguments(OF_PYRAMID, ('in_channels', 'out_channels')), height=SIZES, width=SIZES)
def test_a_pyramid_works_or_says_why_not(drawn, height, width, count):
    count()
    settings, _ = drawn
    neck = built(SimpleFeaturePyramid, *drawn)
    if neck is None:
        return
    outs = neck([torch.rand(1, settings['in_channels'][0], height, width)])
    assert len(outs) == settings.get('num_outs', 5)
    for i, out in enumerate(outs):
        size = [-(-(4 * n) // 2**i) for n in (height, width)]
        assert out.shape == (1, settings['out_channels'], *size)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(depths=[10**9]), 'depths must be at most 65536'),
        (dict(depths=[3000] * 2), 'The sum of depths must be at most 4096, got 6000'),
        (dict(depths=[1] * 40), 'the width of the last stage, must be at most 65536'),
        (dict(embed_dim=10**9), 'embed_dim must be at most 65536'),
        (dict(focal_windows=10**9 + 1), 'focal_window must be at most 65536'),
        (dict(focal_levels=10**9), 'focal_level must be at most 65536'),
        (dict(mlp_ratio=1e30), 'mlp_ratio must be a finite number'),
        (dict(embed_dim=10**5000), 'got a huge int'),
    ],
)
def test_huge_numbers_are_refused_before_anything_is_made(settings, message, count):
    count()
    with pytest.raises(ConfigError, match=message):
        FocalNet(**settings)


WRONG_INPUTS = {
    'three dimensions': (torch.rand(3, 8, 8), r'takes images \(B, C, H, W\)'),
    'no dimension': (torch.tensor(1.0), r'takes images \(B, C, H, W\)'),
    'five dimensions': (torch.rand(1, 1, 3, 8, 8), r'takes images \(B, C, H, W\)'),
    'four channels': (torch.rand(1, 4, 8, 8), 'to have 3 channels, but got 4 channels instead'),
    'bytes': (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 'type|Byte|unsigned char'),
    'no rows': (torch.rand(1, 3, 0, 8), 'size'),
}


@pytest.mark.parametrize('name', WRONG_INPUTS)
def test_wrong_inputs_are_told(name, count):
    count()
    images, message = WRONG_INPUTS[name]
    with pytest.raises((ValueError, RuntimeError), match=message):
        FocalNet(embed_dim=8, depths=(1,))(images)


def test_no_image_has_gradients_of_zero(count):
    count()
    net = FocalNet(embed_dim=8, depths=(1, 1))
    sum(out.sum() for out in net(torch.rand(0, 3, 16, 16))).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in net.parameters())


@given(arch=st.text(max_size=30))
def test_a_registry_builds_no_arch_of_any_other_name(arch, count):
    count()
    with pytest.raises(ConfigError, match='Unknown arch'):
        MODELS.build(dict(type='FocalNet', arch=arch))


def test_numpy_numbers_become_pythons(count):
    count()
    op = FocalModulation(np.int64(4), np.int64(3), np.int64(2), np.int64(0))
    kernels = [type(layer[0].kernel_size[0]) for layer in op.focal_layers]
    assert {type(op.dim), type(op.focal_level), *kernels} == {int}
