"""Variants of the operator (Table 11) and other token mixers (Table 10) against their formulas."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn import functional as F

from mmfocalnet import FocalModulation, FocalNet
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import MIXERS
from mmfocalnet.models.mixers import (
    DepthwiseConv,
    MultiscaleAttentionFirst,
    MultiscaleAttentionLater,
    Pooling,
    SlidingWindowAttention,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(embed_dim=8, depths=(1, 1, 2, 1), focal_levels=2, focal_windows=3)
SWITCHES = {
    'additive': dict(modulation='add'),
    'no_global_pool': dict(use_global_context=False),
    'top_only': dict(aggregate='top'),
    'no_gating': dict(use_gates=False),
    'all_switched': dict(
        modulation='add', use_global_context=False, aggregate='top', use_gates=False
    ),
    'normalized': dict(use_global_context=False, normalize_modulator=True),
    'levels_0_ungated': dict(focal_levels=0, use_gates=False, aggregate='top'),
}
COMPONENTS = ('modulation', 'use_global_context', 'aggregate', 'use_gates')
VARIANTS = {**SWITCHES, **{name: dict(mixer=name) for name in MIXERS}}


def small(**kwargs):
    net = FocalNet(**{**SMALL, **kwargs})
    net.init_weights()
    return net


# ------------------------------------------------------------------------------------------------
# Formulas
# ------------------------------------------------------------------------------------------------


def contexts_of(op, context):
    """z^1 to z^{L+1} of a context (B, C, H, W) by Eq. 4."""
    levels = []
    for layer in op.focal_layers:
        weight = layer[0].weight
        context = F.gelu(
            F.conv2d(context, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])
        )
        levels.append(context)
    return [*levels, F.gelu(context.mean((2, 3), keepdim=True)).expand_as(context)]


@pytest.mark.parametrize('levels', [0, 1, 3])
@pytest.mark.parametrize('use_gates', [True, False])
@pytest.mark.parametrize('aggregate', ['all', 'top'])
@pytest.mark.parametrize('use_global_context', [True, False])
@pytest.mark.parametrize('modulation', ['multiply', 'add'])
def test_component_switches(modulation, use_global_context, aggregate, use_gates, levels):
    switches = dict(
        modulation=modulation,
        use_global_context=use_global_context,
        aggregate=aggregate,
        use_gates=use_gates,
    )
    if not levels and not use_global_context:
        with pytest.raises(ConfigError, match='use_global_context'):
            FocalModulation(6, 3, levels, **switches)
        return
    op = FocalModulation(6, 3, levels, **switches, normalize_modulator=True).double()
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    query, context, gates = op.f(x).permute(0, 3, 1, 2).tensor_split((6, 12), 1)
    *local, everywhere = contexts_of(op, context)
    kept = local if aggregate == 'all' else local[-1:]
    kept = kept + [everywhere] if use_global_context else kept
    assert gates.shape[1] == (len(kept) if use_gates else 0)
    weighted = [z * gates[:, i : i + 1] if use_gates else z for i, z in enumerate(kept)]
    modulator = op.h(sum(weighted) / len(kept))
    x_out = query * modulator if modulation == 'multiply' else query + modulator
    torch.testing.assert_close(op(x), op.proj(x_out.permute(0, 2, 3, 1)))


def test_only_the_papers_operator_is_fused():
    assert FocalModulation(6, 3, 2).can_fuse()
    for switches in SWITCHES.values():
        switches = {key: value for key, value in switches.items() if key in COMPONENTS}
        assert not FocalModulation(6, 3, 2, **switches).can_fuse()


def test_depthwise_conv_follows_its_formula():
    op = DepthwiseConv(6, 3, 2).double()
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    top = contexts_of(op, op.f(x).permute(0, 3, 1, 2))[-2]
    expected = op.proj(op.q(F.gelu(op.h(top)).permute(0, 2, 3, 1)))
    torch.testing.assert_close(op(x), expected)


def test_pooling_averages_pixels_inside_the_image():
    op = Pooling(6, focal_window=3, focal_level=1, use_global_context=False, use_gates=False)
    x = torch.randn(1, 3, 4, 6)
    query, context = op.f(x).chunk(2, dim=-1)
    average = F.gelu(context[:, :2, :2].mean((1, 2)))  # the four pixels at the corner
    expected = op.proj(query[:, 0, 0] * op.h(average[..., None, None])[..., 0, 0])
    torch.testing.assert_close(op(x)[:, 0, 0], expected)


def test_global_pooling_is_focal_modulation_without_levels():
    op = MIXERS['global_pooling'](6, focal_level=3, focal_window=3)
    expected = FocalModulation(6, focal_level=0, focal_window=3)
    expected.load_state_dict(op.state_dict())
    x = torch.randn(1, 5, 5, 6)
    torch.testing.assert_close(op(x), expected(x))


def attend(query, keys, values, heads):
    """Attention of one location per head: query (C), keys (K, C), values (K, C)."""
    out = []
    for q, k, v in zip(*(part.chunk(heads, -1) for part in (query, keys, values)), strict=True):
        out.append((k @ q / math.sqrt(len(q))).softmax(0) @ v)
    return torch.cat(out)


@pytest.mark.parametrize('mixer', [MultiscaleAttentionFirst, MultiscaleAttentionLater])
def test_multiscale_attention_over_the_scales_of_a_location(mixer):
    op = mixer(64, focal_window=3, focal_level=2).double()
    assert op.num_heads == 2
    x = torch.randn(1, 5, 7, 64, dtype=torch.float64)

    def scales(z):
        z = z.permute(0, 3, 1, 2)
        return torch.stack([z, *contexts_of(op, z)])[:, 0, :, 2, 4]  # [L + 2, C] at (2, 4)

    if mixer is MultiscaleAttentionFirst:
        query, key, value = op.qkv(x).chunk(3, -1)
        query, keys, values = query[0, 2, 4], scales(key), scales(value)
    else:
        query = op.q(x[0, 2, 4])
        keys, values = op.kv(scales(x)).chunk(2, -1)
    torch.testing.assert_close(op(x)[0, 2, 4], op.proj(attend(query, keys, values, 2)))


@pytest.mark.parametrize(('row', 'column'), [(0, 0), (4, 5), (8, 9)])
def test_sliding_window_attention_masks_the_border(row, column):
    op = SlidingWindowAttention(64).double()
    x = torch.randn(1, 9, 10, 64, dtype=torch.float64)
    query, key, value = op.qkv(x)[0].chunk(3, -1)
    window = slice(max(0, row - 3), row + 4), slice(max(0, column - 3), column + 4)
    keys, values = key[window].flatten(0, 1), value[window].flatten(0, 1)
    expected = op.proj(attend(query[row, column], keys, values, 2))
    torch.testing.assert_close(op(x)[0, row, column], expected)


@pytest.mark.parametrize('dim', [7, 8, 64, 72, 100])
def test_attention_accepts_any_number_of_channels(dim):
    for name in ('sliding_window_attention', 'multiscale_attention_first'):
        mixer = MIXERS[name]
        levels = {} if mixer is SlidingWindowAttention else dict(focal_window=3, focal_level=1)
        assert mixer(dim, **levels)(torch.randn(1, 4, 4, dim)).shape == (1, 4, 4, dim)


# ------------------------------------------------------------------------------------------------
# Networks
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(1, 1), (33, 70), (5, 200)])
@pytest.mark.parametrize('variant', VARIANTS)
def test_shapes_and_gradients_at_any_size(variant, size):
    net = small(**VARIANTS[variant])
    x = torch.randn(1, 3, *size, requires_grad=True)
    outs = net(x)
    for i, out in enumerate(outs):
        assert out.shape[1:] == (8 * 2**i, -(-size[0] // (4 * 2**i)), -(-size[1] // (4 * 2**i)))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, tensor in [('x', x), *net.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_parameter_has_a_gradient(variant):
    net = small(**VARIANTS[variant], use_layerscale=True, layerscale_value=0.5, drop_path_rate=0.0)
    outs = net(torch.randn(1, 3, 64, 64))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_channels_last_input_and_batches_of_one(variant):
    net = small(**VARIANTS[variant]).eval()
    x = torch.randn(2, 3, 47, 61)
    together = net(x.contiguous(memory_format=torch.channels_last))
    alone = [net(image.unsqueeze(0)) for image in x]
    for i, out in enumerate(together):
        expected = torch.cat([outs[i] for outs in alone])
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('variant', VARIANTS)
def test_bfloat16_autocast_agrees_with_float32(variant):
    net = small(**VARIANTS[variant], use_layerscale=True, layerscale_value=1.0).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        outs = net(x)
    for out, reference in zip(outs, net(x), strict=True):
        assert (out.float() - reference).abs().mean() / reference.abs().mean() < 0.05
    sum(out.float().sum() for out in outs).backward()


@pytest.mark.parametrize('variant', VARIANTS)
def test_config_selects_the_mixer(variant):
    net = MODELS.build(dict(type='FocalNet', **{**SMALL, **VARIANTS[variant]}))
    mixers = {type(block.modulation) for stage in net.layers for block in stage.blocks}
    assert mixers == {MIXERS[VARIANTS[variant].get('mixer', 'focal_modulation')]}


def test_a_detector_trains_with_another_mixer():
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    cfg = Config.fromfile(ROOT / 'configs/demo/mask_rcnn.py')
    cfg.model.backbone.update(mixer='multiscale_attention_first', embed_dim=8)
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([1])
    )
    losses = model(torch.randn(1, 3, 64, 64), [sample], mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    mixer = model.backbone.layers[0].blocks[0].modulation
    assert mixer.qkv.weight.grad.any()


PRETRAINED = dict(type='Pretrained', checkpoint='x.pth')


@pytest.mark.parametrize(
    ('kwargs', 'argument', 'value'),
    [
        (dict(modulation='divide'), 'modulation', "'divide'"),
        (dict(aggregate='bottom'), 'aggregate', "'bottom'"),
        (dict(use_gates='no'), 'use_gates', "'no'"),
        (dict(use_global_context=None), 'use_global_context', 'None'),
        (dict(use_global_context=False, focal_levels=0), 'focal_level=0', 'use_global_context'),
        (dict(mixer='attention'), 'mixer', "'attention'"),
        (dict(mixer=['pooling']), 'mixer', "['pooling']"),
        (dict(mixer='pool', init_cfg=PRETRAINED), 'mixer', "'pool'"),
        (dict(mixer='sliding_window_attention', use_gates=False), 'use_gates', 'False'),
        (dict(mixer='depthwise_conv', normalize_modulator=True), 'normalize_modulator', 'True'),
        (dict(mixer='pooling', init_cfg=PRETRAINED), 'init_cfg', "mixer='pooling'"),
        (dict(use_gates=False, init_cfg=PRETRAINED), 'init_cfg', 'use_gates=False'),
    ],
    ids=str,
)
def test_invalid_settings(kwargs, argument, value):
    with pytest.raises(ConfigError) as error:
        FocalNet(**{**SMALL, **kwargs})
    assert argument in str(error.value) and value in str(error.value)
