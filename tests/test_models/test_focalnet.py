"""The backbone: shapes, gradients, options, invalid arguments, compilation and every path."""

import contextlib

import numpy as np
import pytest
import torch
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS
from recorded_paths import recorded
from torch import nn
from torch.utils.data import default_collate

from mmfocalnet import FocalModulation, FocalNet, ops
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import ARCHS
from mmfocalnet.models.focalnet_arguments import pretrained_options
from mmfocalnet.models.pretrained import drop_pretrained

SMALL = dict(embed_dim=8, depths=(1, 1, 2, 1), focal_levels=2, focal_windows=3)
VARIANTS = {
    'plain': {},
    'lrf_odd_windows': dict(focal_levels=3, focal_windows=(11, 9, 9, 7)),
    'mixed_levels': dict(focal_levels=(4, 3, 2, 0)),
    'large': dict(use_conv_embed=True, use_postln=True, use_layerscale=True),
    'huge': dict(use_postln_in_modulation=True, normalize_modulator=True),
    'overlapped': dict(use_conv_embed=True),
    'two_stages': dict(depths=(1, 2)),
    'iso': dict(depths=(2,), patch_size=16, embed_dim=16),
    'iso_base': dict(
        depths=(2,), patch_size=16, embed_dim=16, use_postln=True, use_layerscale=True
    ),
    'grey': dict(in_chans=1),
}


def small(**kwargs):
    net = FocalNet(**{**SMALL, **kwargs})
    net.init_weights()
    return net


def strides_of(net):
    return [net.patch_embed.patch_size * 2**i for i in net.out_indices]


@pytest.mark.parametrize('name', ARCHS)
def test_output_shapes_of_every_arch(name):
    with torch.device('meta'):
        net = FocalNet(name, depths=[1] * len(ARCHS[name]['depths']))
        outs = net(torch.empty(2, 3, 67, 93))
    for i, (out, stride) in enumerate(zip(outs, strides_of(net), strict=True)):
        # Rounding up at each embedding equals rounding up once.
        assert out.shape == (2, ARCHS[name]['embed_dim'] * 2**i, -(-67 // stride), -(-93 // stride))


def test_arguments_override_the_arch():
    net = FocalNet('tiny_lrf', focal_windows=[9] * 4, depths=[1, 1, 1, 1])
    kernels = [layer[0].kernel_size[0] for layer in net.layers[0].blocks[0].modulation.focal_layers]
    assert kernels == [9, 11, 13]
    assert [len(stage.blocks) for stage in net.layers] == [1, 1, 1, 1]


def test_padding_of_conv_embed_is_that_of_the_checkpoints():
    net = small(use_conv_embed=True)
    assert net.patch_embed.proj.padding == (2, 2)
    assert net.layers[0].downsample.proj.padding == (1, 1)


@pytest.mark.parametrize('size', [(64, 64), (1, 1), (33, 70), (5, 200)])
@pytest.mark.parametrize('variant', VARIANTS)
def test_shapes_and_gradients_at_any_size(variant, size):
    net = small(**VARIANTS[variant])
    x = torch.randn(1, net.patch_embed.proj.in_channels, *size, requires_grad=True)
    outs = net(x)
    for out, stride in zip(outs, strides_of(net), strict=True):
        assert out.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, tensor in [('x', x), *net.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name


def test_every_parameter_has_a_gradient():
    net = small(use_layerscale=True, layerscale_value=0.5, drop_path_rate=0.0)
    outs = net(torch.randn(1, 3, 64, 64))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def gradients(net, x):
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in net(x)).backward()
    return {key: p.grad for key, p in net.named_parameters()}


@pytest.mark.parametrize('variant', VARIANTS)
def test_activation_checkpointing_gives_identical_gradients(variant):
    settings = {**VARIANTS[variant], 'drop_path_rate': 0.5, 'drop_rate': 0.1}
    plain, checkpointed = small(**settings), small(**settings, use_checkpoint=True)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(2, plain.patch_embed.proj.in_channels, 40, 48)
    expected, actual = gradients(plain, x), gradients(checkpointed, x)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


@pytest.mark.parametrize('conv_embed', [False, True])
@pytest.mark.parametrize('name', ARCHS)
def test_every_arch_trains(name, conv_embed):
    settings = dict(embed_dim=8, depths=[1] * len(ARCHS[name]['depths']), layerscale_value=0.5)
    if conv_embed and ARCHS[name].get('patch_size', 4) == 4:
        settings['use_conv_embed'] = True
    net = FocalNet(name, **settings, use_checkpoint=True)
    net.init_weights()
    for key, grad in gradients(net, torch.randn(2, 3, 67, 93)).items():
        assert grad.isfinite().all() and grad.any(), key


@pytest.fixture
def paths_run(monkeypatch):
    """Names of the paths that compute focal modulations, in order of their calls."""
    names = []
    paths = tuple(recorded(path, names) for path in ops.dispatch.MODULATION)
    monkeypatch.setattr(ops.dispatch, 'MODULATION', paths)
    return names


@pytest.mark.parametrize('path', ['reference', 'pytorch'])
def test_activation_checkpointing_recomputes_on_the_path_of_the_forward_pass(path, paths_run):
    net = small(use_checkpoint=True)
    blocks = sum(SMALL['depths'])
    with ops.use_path(path):
        outs = net(torch.randn(1, 3, 32, 32))
    assert paths_run == [path] * blocks
    sum(out.sum() for out in outs).backward()
    assert paths_run == [path] * 2 * blocks


def test_activation_checkpointing_ignores_a_path_requested_in_backward_alone(paths_run):
    net = small(use_checkpoint=True)
    outs = net(torch.randn(1, 3, 32, 32))
    forward = list(paths_run)
    with ops.use_path('reference'):
        sum(out.sum() for out in outs).backward()
    assert 'reference' not in forward
    assert sorted(paths_run) == sorted(2 * forward)


def test_float64_agrees_with_float32():
    net = small().eval()
    x = torch.randn(1, 3, 50, 70)
    expected = [out.double() for out in net(x)]
    for out, reference in zip(net.double()(x.double()), expected, strict=True):
        assert out.dtype == torch.float64
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_agrees_with_float32():
    net = small(use_layerscale=True, layerscale_value=1.0).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = net(x)
    with torch.autocast('cpu', torch.bfloat16):
        outs = net(x)
    for out, reference in zip(outs, expected, strict=True):
        assert ((out.float() - reference).abs().mean() / reference.abs().mean()) < 0.05
    sum(out.float().sum() for out in outs).backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_channels_last_input_and_batches_of_one():
    net = small().eval()
    x = torch.randn(3, 3, 47, 61)
    together = net(x.contiguous(memory_format=torch.channels_last))
    alone = [net(image.unsqueeze(0)) for image in x]
    for out, parts in zip(together, default_collate(alone), strict=True):
        torch.testing.assert_close(out, parts.squeeze(1), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_torch_jit_trace_accepts_other_sizes():
    net = small().eval()
    traced = torch.jit.trace(net, torch.randn(1, 3, 64, 64))
    x = torch.randn(2, 3, 45, 99)
    for out, reference in zip(traced(x), net(x), strict=True):
        torch.testing.assert_close(out, reference)


def test_drop_path_grows_linearly_over_blocks():
    net = FocalNet(**SMALL, drop_path_rate=0.4)
    rates = [getattr(b.drop_path, 'drop_prob', 0.0) for stage in net.layers for b in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_out_indices():
    net = small(out_indices=(1, 3))
    outs = net(torch.randn(1, 3, 64, 64))
    assert [out.shape[1] for out in outs] == [16, 64]
    assert [name for name, _ in net.named_children() if name.startswith('norm')] == [
        'norm1',
        'norm3',
    ]


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages(frozen):
    net = small(frozen_stages=frozen, drop_rate=0.1)
    assert net.train() is net
    assert net.eval() is net
    net.train()
    net(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    frozen_modules = [net.patch_embed, *net.layers[:frozen]] if frozen >= 0 else []
    for module in frozen_modules:
        assert not any(m.training for m in module.modules())
        assert all(not p.requires_grad and p.grad is None for p in module.parameters())
    rest = nn.ModuleList(net.layers[max(frozen, 0) :])
    assert all(m.training for stage in rest for m in stage.modules())
    assert all(p.requires_grad for p in rest.parameters())


def test_registered_in_the_root_registry():
    import mmdet.registry
    import mmseg.registry

    for registry in (MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS):
        assert registry.get('FocalNet') is FocalNet
        assert isinstance(registry.build(dict(type='FocalNet', arch='tiny_srf')), FocalNet)


def test_random_initialisation():
    net = small()
    weight = net.layers[3].blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not net.layers[0].blocks[0].modulation.f.bias.any()


PRETRAINED = dict(type='Pretrained', checkpoint='x.pth')


@pytest.mark.parametrize(
    ('kwargs', 'argument', 'value'),
    [
        (dict(arch='tiny_lfr'), 'arch', "'tiny_lrf'"),  # suggested
        (dict(depths=4), 'depths', '4'),
        (dict(depths=(2, 0)), 'depths', '0'),
        (dict(focal_levels=[2, 2]), 'focal_levels', '[2, 2]'),
        (dict(focal_windows=4), 'focal_window', '4'),
        (dict(focal_windows=[9, 9, 0, 9]), 'focal_window', '0'),
        (dict(focal_factor=1), 'focal_factor', '1'),
        (dict(mlp_ratio=float('nan')), 'mlp_ratio', 'nan'),
        (dict(drop_path_rate=1.5), 'drop_path_rate', '1.5'),
        (dict(use_conv_embed=True, patch_size=16), 'patch_size=4', '16'),
        (dict(out_indices=(0, 4)), 'out_indices', '(0, 4)'),
        (dict(out_indices=(2, 1)), 'out_indices', '(2, 1)'),
        (dict(frozen_stages=5), 'frozen_stages', '5'),
        (dict(init_cfg=dict(type='Normal')), 'init_cfg', 'Normal'),
        (dict(init_cfg=dict(type='Pretrained')), 'init_cfg', 'checkpoint='),
        (dict(init_cfg=dict(PRETRAINED, strict=True)), 'init_cfg', 'strict'),
    ],
    ids=str,
)
def test_invalid_arguments_and_values_are_in_the_message(kwargs, argument, value):
    with pytest.raises(ConfigError) as error:
        FocalNet(**{**SMALL, **kwargs})
    assert argument in str(error.value) and value in str(error.value)


@pytest.mark.parametrize('path', ['reference', 'layers', None])
def test_modulation_follows_algorithm_1(path):
    """Compare the operator with the paper's Algorithm 1, written out in channels-first."""
    op = FocalModulation(6, focal_window=5, focal_level=2, normalize_modulator=True).double()
    x = torch.randn(2, 9, 7, 6, dtype=torch.float64)
    q, z, gates = torch.split(op.f(x).permute(0, 3, 1, 2), [6, 6, 3], 1)
    total = 0
    for level, layer in enumerate(op.focal_layers):
        z = nn.functional.gelu(
            nn.functional.conv2d(z, layer[0].weight, padding=2 + level, groups=6)
        )
        total = total + z * gates[:, level : level + 1]
    total = total + nn.functional.gelu(z.mean((2, 3), keepdim=True)) * gates[:, 2:]
    expected = op.proj((q * op.h(total / 3)).permute(0, 2, 3, 1))
    if path == 'layers':
        op.f.register_forward_hook(lambda *args: None)
        assert not op.can_fuse()
    with ops.use_path(path) if path == 'reference' else contextlib.nullcontext():
        torch.testing.assert_close(op(x), expected)


def test_modulation_dropout_acts_in_training_only():
    op = FocalModulation(4, focal_window=3, focal_level=1, proj_drop=0.5)
    x = torch.randn(1, 8, 8, 4)
    assert (op(x) == 0).any()
    assert not (op.eval()(x) == 0).any()


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_path_gives_the_same_network(variant):
    net = small(**VARIANTS[variant]).eval()
    x = torch.randn(1, net.patch_embed.proj.in_channels, 70, 90)
    answers = {}
    for path in ('reference', 'pytorch', None):
        with ops.use_path(path) if path else contextlib.nullcontext():
            outs = net(x)
        net.zero_grad()
        sum(out.square().mean() for out in outs).backward()
        answers[path] = [*outs, *(p.grad.clone() for p in net.parameters())]
    for path in ('pytorch', None):
        for expected, got in zip(answers['reference'], answers[path], strict=True):
            # Some gradients of a newly initialised network are tiny, and all rounding errors.
            scale = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale + 1e-7)


def test_hooks_of_every_layer_are_called():
    net = small().eval()
    seen = []
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda *args, name=name: seen.append(name))
    net(torch.randn(1, 3, 32, 32))
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(seen) == sorted(layers)


def test_init_cfg_of_pure_python_configs():
    assert pretrained_options(dict(type=PretrainedInit, checkpoint='a')) == dict(checkpoint='a')


def test_init_cfg_of_mmdets_test_robustness():
    assert small(init_cfg=dict(type=None, checkpoint='none.pth')).init_cfg is None


@pytest.mark.parametrize('settings', [dict(padding=2), dict(dilation=2), dict(groups=3)], ids=str)
def test_replaced_patch_embeddings_are_called(settings):
    net, x = small(embed_dim=12), torch.randn(1, 3, 32, 32)
    net.patch_embed.proj = nn.Conv2d(3, 12, 4, 4, **settings)
    net.patch_embed.norm = None
    expected = net.patch_embed.proj(x).permute(0, 2, 3, 1)
    torch.testing.assert_close(net.patch_embed(x), expected)


@pytest.mark.parametrize(
    ('init_cfg', 'expected'),
    [
        (dict(type='Pretrained', checkpoint='none.pth'), None),
        (dict(type=PretrainedInit, checkpoint='none.pth'), None),
        ([dict(type='Pretrained', checkpoint='none.pth')], None),
        (
            [dict(type='Pretrained', checkpoint='none.pth'), dict(type='Xavier')],
            [dict(type='Xavier')],
        ),
        (dict(type='Xavier'), dict(type='Xavier')),
        (None, None),
    ],
    ids=str,
)
def test_pretrained_weights_are_dropped_from_a_config(init_cfg, expected):
    model = dict(type='A', pretrained='a.pth', neck=[dict(type='B', init_cfg=init_cfg)])
    drop_pretrained(model)
    assert model == dict(type='A', pretrained=None, neck=[dict(type='B', init_cfg=expected)])


INVALID_IMAGES = {
    'no dimension': (torch.tensor(1.0), ValueError, '()'),
    'three dimensions': (torch.rand(3, 8, 8), ValueError, '(3, 8, 8)'),
    'five dimensions': (torch.rand(1, 1, 3, 8, 8), ValueError, '(1, 1, 3, 8, 8)'),
    'four channels': (torch.rand(1, 4, 8, 8), RuntimeError, '3 channels'),
    'no rows': (torch.rand(1, 3, 0, 8), RuntimeError, '(0 x 8)'),
    'bytes': (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), RuntimeError, 'unsigned char'),
}


@pytest.mark.parametrize('name', INVALID_IMAGES)
def test_invalid_images(name):
    images, error_type, value = INVALID_IMAGES[name]
    with pytest.raises(error_type) as error:
        FocalNet(embed_dim=8, depths=(1,))(images)
    assert type(error.value) is error_type and value in str(error.value)


def test_empty_batch_has_zero_gradients():
    net = FocalNet(embed_dim=8, depths=(1, 1))
    sum(out.sum() for out in net(torch.rand(0, 3, 16, 16))).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in net.parameters())


def test_numpy_integers_become_ints():
    op = FocalModulation(np.int64(4), np.int64(3), np.int64(2), np.int64(0))
    sizes = [type(layer[0].kernel_size[0]) for layer in op.focal_layers]
    assert {type(op.dim), type(op.focal_level), *sizes} == {int}
