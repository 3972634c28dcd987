import contextlib

import pytest
import torch
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS
from torch import nn
from torch.utils.data import default_collate

from mmfocalnet import FocalModulation, FocalNet, ops
from mmfocalnet.models import ARCHS
from mmfocalnet.models.focalnet import pretrained_options

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
def test_every_arch_by_name(name):
    with torch.device('meta'):
        net = FocalNet(name)
        outs = net(torch.empty(2, 3, 67, 93))
    strides = strides_of(net)
    for i, (out, stride) in enumerate(zip(outs, strides, strict=True)):
        # Each embedding rounds up, so the sizes are those of rounding up once.
        assert out.shape == (2, ARCHS[name]['embed_dim'] * 2**i, -(-67 // stride), -(-93 // stride))


@pytest.mark.parametrize(
    ('name', 'millions'),
    [
        # Parameters of the classifiers in Tables 1, 3, 4 and 13 of the paper.
        ('tiny_srf', 28.4),
        ('tiny_lrf', 28.6),
        ('small_srf', 49.9),
        ('small_lrf', 50.3),
        ('base_srf', 88.1),
        ('base_lrf', 88.7),
        ('tiny_deep_srf', 25.1),
        ('small_deep_srf', 38.2),
        ('base_deep_srf', 85.1),
        ('tiny_iso', 5.9),
        ('small_iso', 22.4),
        ('base_iso', 87.2),
    ],
)
def test_parameters_are_those_of_the_paper(name, millions):
    with torch.device('meta'):
        # Table 3's counts are those with the overlapped embedding, though the released
        # detection configs of these models have the plain one.
        net = FocalNet(name, use_conv_embed=True if 'deep' in name else None)
    features, classes = net.num_features[-1], 1000
    backbone = sum(p.numel() for key, p in net.named_parameters() if not key.startswith('norm'))
    count = backbone + 2 * features + classes * (features + 1)
    assert round(count / 1e6, 1) == millions


def test_arguments_win_over_the_arch():
    net = FocalNet('tiny_lrf', focal_windows=[9] * 4, depths=[1, 1, 1, 1])
    kernels = [layer[0].kernel_size[0] for layer in net.layers[0].blocks[0].modulation.focal_layers]
    assert kernels == [9, 11, 13]
    assert [len(stage.blocks) for stage in net.layers] == [1, 1, 1, 1]


def test_conv_embed_is_padded_as_the_checkpoints_were_trained():
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


def test_every_parameter_matters():
    net = small(use_layerscale=True, layerscale_value=0.5, drop_path_rate=0.0)
    outs = net(torch.randn(1, 3, 64, 64))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_checkpointing_changes_no_number(variant):
    plain = small(**VARIANTS[variant], drop_path_rate=0.5, drop_rate=0.1)
    lean = small(**VARIANTS[variant], drop_path_rate=0.5, drop_rate=0.1, use_checkpoint=True)
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(2, plain.patch_embed.proj.in_channels, 40, 48)
    grads = []
    for net in (plain, lean):
        torch.manual_seed(1)
        sum(out.square().sum() for out in net(x)).backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize('overlapped', [False, True])
@pytest.mark.parametrize('name', ARCHS)
def test_every_arch_trains_alike_with_checkpointing(name, overlapped):
    settings = dict(embed_dim=8, depths=[1] * len(ARCHS[name]['depths']), layerscale_value=0.5)
    if overlapped and ARCHS[name].get('patch_size', 4) == 4:
        settings['use_conv_embed'] = True
    plain, lean = FocalNet(name, **settings), FocalNet(name, **settings, use_checkpoint=True)
    plain.init_weights()
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 67, 93)
    grads = []
    for net in (plain, lean):
        torch.manual_seed(1)
        sum((out * torch.randn_like(out)).sum() for out in net(x)).backward()
        grads.append({key: p.grad for key, p in net.named_parameters()})
    for key, expected in grads[0].items():
        assert expected.isfinite().all() and expected.any(), key
        torch.testing.assert_close(grads[1][key], expected, rtol=0, atol=0)


def test_float64_agrees_with_float32():
    net = small().eval()
    x = torch.randn(1, 3, 50, 70)
    expected = [out.double() for out in net(x)]
    for out, reference in zip(net.double()(x.double()), expected, strict=True):
        assert out.dtype == torch.float64
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_stays_near():
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


def test_torch_compile_has_no_graph_breaks():
    net = small().eval()
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    for out, reference in zip(compiled(x), net(x), strict=True):
        torch.testing.assert_close(out, reference)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_torch_jit_trace_takes_other_sizes():
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


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(focal_windows=4), r'focal_window must be an odd positive number, got 4'),
        (dict(focal_windows=[9, 9, 0, 9]), r'focal_window must be an odd positive number, got 0'),
        (dict(focal_windows=[-3] * 4), r'odd positive number, got -3'),
        (dict(focal_factor=1), r'focal_factor must be an even number'),
        (dict(focal_levels=[2, 2]), r'focal_levels has 2 values but depths has 4'),
        (dict(focal_windows=[9] * 5), r'focal_windows has 5 values but depths has 4'),
        (dict(focal_levels=-1), r'focal_level must be a whole number, 0 or more, got -1'),
        (dict(depths=()), r'depths must list'),
        (dict(depths=4), r'depths must list .* got 4'),
        (dict(depths=(2, 0)), r'depths must be a whole number, 1 or more, got 0'),
        (dict(embed_dim=0), r'embed_dim must be a whole number'),
        (dict(patch_size=0), r'patch_size must be'),
        (dict(focal_windows=9.0), r'odd positive number, got 9.0'),
        (dict(focal_levels=[2.0] * 4), r'focal_level must be a whole number'),
        (dict(drop_path_rate=1.5), r'drop_path_rate must be at least 0 and below 1'),
        (dict(arch=['tiny']), r'Unknown arch'),
        (dict(out_indices=(0, 4)), r'out_indices must be increasing stage numbers from 0 to 3'),
        (dict(out_indices=(2, 1)), r'out_indices must be increasing'),
        (dict(frozen_stages=5), r'frozen_stages must be from -1'),
        (dict(use_conv_embed=True, patch_size=16), r'patch_size=4 only'),
        (dict(arch='tiny_lfr'), r"Unknown arch 'tiny_lfr': did you mean 'tiny_lrf'"),
    ],
)
def test_bad_arguments_are_one_sentence(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        FocalNet(**{**SMALL, **kwargs})
    assert '\n' not in str(error.value)


def test_modulation_follows_algorithm_1():
    """The operator against the paper's Algorithm 1, written out in channels-first."""
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
    for path in ('plain', 'pytorch', None):
        with ops.use_path(path) if path else contextlib.nullcontext():
            outs = net(x)
        net.zero_grad()
        sum(out.square().mean() for out in outs).backward()
        answers[path] = [*outs, *(p.grad.clone() for p in net.parameters())]
    for path in ('pytorch', None):
        for expected, got in zip(answers['plain'], answers[path], strict=True):
            # Some gradients of a network just initialised are next to nothing, and all rounding.
            scale = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale + 1e-7)


def test_checkpointing_computes_again_by_the_path_of_before():
    net = small(use_checkpoint=True)
    with ops.use_path('plain'):
        outs = net(torch.randn(1, 3, 32, 32))
    sum(out.sum() for out in outs).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    outs = net(torch.randn(1, 3, 32, 32))
    with ops.use_path('plain'):
        sum(out.sum() for out in outs).backward()


def test_compiled_gradients():
    net = small(drop_path_rate=0)
    x = torch.randn(1, 3, 32, 40)
    answers = []
    for function in (net, torch.compile(net, backend='aot_eager', fullgraph=True)):
        net.zero_grad()
        sum(out.square().sum() for out in function(x)).backward()
        answers.append([parameter.grad.clone() for parameter in net.parameters()])
    for expected, got in zip(*answers, strict=True):
        atol = 1e-5 * expected.abs().max().item() + 1e-5
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def test_counting_hooks_see_every_layer():
    net = small().eval()
    seen = []
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda *args, name=name: seen.append(name))
    net(torch.randn(1, 3, 32, 32))
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(seen) == sorted(layers)


def test_init_cfg_of_pure_python_configs_and_of_mmdets_test_robustness():
    assert pretrained_options(dict(type=PretrainedInit, checkpoint='a')) == dict(checkpoint='a')
    small(init_cfg=dict(type=None, checkpoint='none.pth'))
