"""Choice of the path: requests, reasons, tracing, and layers that must be called."""

import importlib.util

import pytest
import torch
from operator_inputs import CPU_PATHS, DIM, make_weights, needs_numba
from torch import nn

from mmfocalnet import ops
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import FocalModulation
from mmfocalnet.models.focalnet import Mlp
from mmfocalnet.ops import dispatch, numba_path, pytorch_path, reference
from mmfocalnet.ops.call import Call

SMALL = dict(shape=(1, 9, 9, 4), focal_window=3, focal_level=1)


@needs_numba
def test_explain_ends_with_the_path_that_runs():
    lines = ops.explain((1, 200, 304, 96), focal_window=9, focal_level=3).splitlines()
    assert lines[0].startswith('triton: skipped, ')
    assert lines[1:] == ['numba: runs']


def test_explain_accepts_any_form_of_a_device():
    assert ops.explain(**SMALL, device=torch.device('cpu')) == ops.explain(**SMALL)
    assert 'on cuda' not in ops.explain(**SMALL, device='cuda:0').splitlines()[0]
    with pytest.raises(RuntimeError, match='gpu'):
        ops.explain(**SMALL, device='gpu')


@pytest.mark.parametrize(
    ('kwargs', 'reason'),
    [
        (dict(dtype=torch.float64), 'torch.float64'),
        (dict(focal_level=0), 'got 0'),
        (dict(focal_window=21), 'got 21'),
        (dict(shape=(0, 9, 9, 4)), 'empty'),
    ],
    ids=str,
)
def test_explain_gives_the_reason_against_numba(kwargs, reason):
    lines = ops.explain(**{**SMALL, **kwargs}).splitlines()
    assert lines[1].startswith('numba: skipped, ') and reason in lines[1]


@pytest.mark.parametrize('module', [numba_path, pytorch_path])
def test_cpu_paths_do_not_run_on_cuda(module):
    assert 'cuda' in module.unsupported(Call((3,), device='cuda'))


def broken_numba():
    raise ImportError('Numba needs NumPy 2.2 or less')


@pytest.mark.parametrize(
    ('target', 'name', 'replacement', 'reason'),
    [
        (importlib.util, 'find_spec', lambda name: None, 'pip install numba'),
        (numba_path, 'openmp', lambda: None, 'libgomp'),
        (numba_path, '_kernels', broken_numba, 'Numba needs NumPy 2.2'),
    ],
    ids=['not installed', 'no GNU OpenMP', 'broken'],
)
def test_without_numba_the_pytorch_path_runs(target, name, replacement, reason, monkeypatch):
    if target is numba_path:
        pytest.importorskip('numba')
    monkeypatch.setattr(target, name, replacement)
    *_, numba, pytorch = ops.explain(**SMALL).splitlines()
    assert numba.startswith('numba: skipped') and reason in numba
    assert pytorch == 'pytorch: runs'


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_numba_refuses_weights_of_another_type(dtype):
    weights = make_weights()
    mixed = weights._replace(kernels=tuple(kernel.to(dtype) for kernel in weights.kernels))
    with ops.use_path('numba'), pytest.raises(ConfigError, match=r'numba.*dtype'):
        ops.modulate(torch.randn(1, 9, 14, DIM), mixed)


def test_a_requested_path_that_cannot_run_raises():
    x = torch.randn(1, 9, 14, DIM, dtype=torch.float64)
    with ops.use_path('numba'), pytest.raises(ConfigError, match=r'numba.*float64'):
        ops.modulate(x, make_weights(dtype=torch.float64))


def test_unknown_path():
    with pytest.raises(ConfigError, match='cuda'), ops.use_path('cuda'):
        pass


def test_plain_is_a_deprecated_name_of_the_reference():
    weights, x = make_weights(), torch.randn(1, 9, 14, DIM)
    with pytest.warns(DeprecationWarning, match='reference') as warned, ops.use_path('plain'):
        actual = ops.modulate(x, weights)
    assert warned[0].filename == __file__
    assert torch.equal(actual, reference.modulate(x, weights))


def test_every_path_is_tested():
    assert set(ops.PATHS) == {'triton', 'triton_2', 'triton_8', 'reference', *CPU_PATHS}


def test_skipped_paths_are_logged(monkeypatch):
    lines = []
    dispatch._choose_for.cache_clear()
    monkeypatch.setattr(
        'mmfocalnet.ops.dispatch.print_log', lambda message, **kwargs: lines.append(message)
    )
    ops.modulate(torch.randn(1, 9, 14, DIM, dtype=torch.float64), make_weights(dtype=torch.float64))
    assert any('numba: skipped' in line and 'torch.float64' in line for line in lines)


def test_tensor_subclasses_use_the_reference():
    class Quantised(torch.Tensor):
        pass

    weight = torch.randn(DIM, DIM).as_subclass(Quantised)
    x = torch.randn(200, DIM)
    assert Call.of(x, [weight]).tensor_type == 'Quantised'
    with ops.use_path('pytorch'), pytest.raises(ConfigError, match='Quantised'):
        ops.linear(x, weight, None)


# ------------------------------------------------------------------------------------------------
# Tracing and higher derivatives
# ------------------------------------------------------------------------------------------------


def test_flop_counters_see_the_reference():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        ops.modulate(torch.randn(1, 9, 14, DIM), make_weights())
    convolutions = 2 * DIM * 9 * 14 * (9 + 25 + 49)
    products = 2 * 9 * 14 * DIM * (2 * DIM + 4 + DIM)
    assert counter.get_total_flops() == convolutions + products


def test_transforms_of_torch_func():
    module = FocalModulation(DIM, 3, 2)
    x = torch.randn(3, 1, 5, 6, DIM)
    mapped = torch.func.vmap(module)(x)
    torch.testing.assert_close(mapped, torch.stack([module(one) for one in x]))
    leaf = x[0].clone().requires_grad_()
    module(leaf).sum().backward()
    gradient = torch.func.grad(lambda x: module(x).sum())(x[0])
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = module(torch.autograd.forward_ad.make_dual(x[0], x[0]))
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent is not None


OPERATORS = {
    'modulate': lambda x: ops.modulate(x, make_weights()),
    'linear': lambda x: ops.linear(x, torch.randn(4, DIM), None),
    'feed_forward': lambda x: ops.feed_forward(
        x, torch.randn(DIM, DIM), None, torch.randn(DIM, DIM), None
    ),
}


@pytest.mark.parametrize('path', [pytest.param('numba', marks=needs_numba), 'pytorch'])
@pytest.mark.parametrize('operator', OPERATORS)
def test_second_derivatives_are_refused(path, operator):
    x = torch.randn(1, 9, 14, DIM, requires_grad=True)
    with ops.use_path(path):
        out = OPERATORS[operator](x).sum()
    with pytest.raises(RuntimeError, match=r"create_graph=True.*use_path\('reference'\)"):
        torch.autograd.grad(out, x, create_graph=True)


def test_batched_gradients_are_refused():
    x = torch.randn(1, 5, 6, DIM)
    with pytest.raises(RuntimeError, match='vectorize=True'):
        torch.autograd.functional.jacobian(OPERATORS['modulate'], x, vectorize=True)


# ------------------------------------------------------------------------------------------------
# Layers that must be called
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['f', 'h', 'focal_layers.0', 'focal_layers.1.0', 'proj'])
def test_hooks_of_a_layer_are_called(name):
    module = FocalModulation(DIM, 3, 2)
    x = torch.randn(1, 9, 14, DIM)
    expected = module(x)
    calls = []
    module.get_submodule(name).register_forward_hook(lambda *args: calls.append(args[2].shape))
    torch.testing.assert_close(module(x), expected)
    assert len(calls) == 1


def replace_gelu(module):
    module.focal_layers[0][1] = nn.GELU('tanh')


def replace_padding(module):
    module.focal_layers[0][0].padding_mode = 'reflect'
    module.focal_layers[0][0]._reversed_padding_repeated_twice = [1, 1, 1, 1]


def append_norm(module):
    module.focal_layers[0].append(nn.BatchNorm2d(DIM))


def group_h(module):
    module.h = nn.Conv2d(DIM, DIM, 1, groups=2)


def dilate(module):
    module.focal_layers[0][0] = nn.Conv2d(
        DIM, DIM, 3, padding=2, dilation=2, groups=DIM, bias=False
    )


def add_bias(module):
    module.focal_layers[0][0] = nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM)


@pytest.mark.parametrize(
    'change', [replace_gelu, replace_padding, append_norm, group_h, dilate, add_bias]
)
def test_replaced_layers_are_called(change):
    module = FocalModulation(DIM, 3, 2)
    assert module.can_fuse()
    change(module)
    assert not module.can_fuse()
    x = torch.randn(2, 9, 14, DIM)
    query, context, gates = module.f(x).split((DIM, DIM, 3), dim=-1)
    context, gates = context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2).split(1, dim=1)
    first = module.focal_layers[0](context)
    second = module.focal_layers[1](first)
    everywhere = nn.functional.gelu(second.mean((2, 3), keepdim=True))
    total = first * gates[0] + second * gates[1] + everywhere * gates[2]
    expected = module.proj(query * module.h(total).permute(0, 2, 3, 1))
    torch.testing.assert_close(module(x), expected)


def test_subclasses_of_layers_are_called():
    class Zero(nn.Linear):
        def forward(self, x):
            return 0 * super().forward(x)

    module = FocalModulation(DIM, 3, 2)
    module.f = Zero(DIM, 2 * DIM + 3)
    module.proj.bias.data.zero_()
    assert module(torch.randn(1, 9, 14, DIM)).abs().max() == 0


def test_mlp_calls_its_dropout_and_replaced_layers():
    x = torch.randn(2, 30, DIM)
    mlp = Mlp(DIM, 4 * DIM, drop=0.5).eval()
    assert mlp.can_fuse()
    mlp.drop.train()  # Monte Carlo dropout
    torch.manual_seed(0)
    actual = mlp(x)
    torch.manual_seed(0)
    assert torch.equal(actual, mlp.drop(mlp.fc2(mlp.drop(mlp.act(mlp.fc1(x))))))
    mlp.drop = nn.Identity()
    mlp.act = nn.GELU('tanh')
    assert torch.equal(mlp(x), mlp.fc2(mlp.act(mlp.fc1(x))))
