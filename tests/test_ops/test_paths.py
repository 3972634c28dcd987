"""Every path of the operators against the plain one in float64."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mmfocalnet import ops
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import FocalNetBlock, Mlp
from mmfocalnet.ops import numba_path, plain, products, pytorch_path
from mmfocalnet.ops.case import Case

DIM = 12
# One pixel, a row, a column, smaller than the kernels, odd, and large enough for transforms.
SHAPES = [(2, 1, 1), (1, 1, 7), (1, 6, 1), (2, 5, 3), (1, 9, 14), (2, 33, 40)]
MODULATION = ['numba', 'pytorch']

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec('numba') is None or numba_path.openmp() is None,
    reason='numba or GNU OpenMP is missing',
)
paths = pytest.mark.parametrize(
    'path', [pytest.param('numba', marks=needs_numba), pytest.param('pytorch')]
)


def make_weights(levels=3, window=3, bias=True, normalize=False, dtype=torch.float64):
    def draw(*shape):
        return (0.4 * torch.randn(*shape, dtype=torch.float64)).to(dtype).requires_grad_()

    return plain.ModulationWeights(
        draw(2 * DIM + levels + 1, DIM),
        draw(2 * DIM + levels + 1) if bias else None,
        tuple(draw(DIM, 1, window + 2 * i, window + 2 * i) for i in range(levels)),
        draw(DIM, DIM, 1, 1),
        draw(DIM) if bias else None,
        normalize,
    )


def tensors_of(weights):
    flat = [weights.f_weight, weights.f_bias, *weights.kernels, weights.h_weight, weights.h_bias]
    return [tensor for tensor in flat if tensor is not None]


def to(weights, dtype):
    def convert(tensor):
        return None if tensor is None else tensor.detach().to(dtype).requires_grad_()

    kernels = tuple(convert(kernel) for kernel in weights.kernels)
    f_weight, f_bias, _, h_weight, h_bias, normalize = weights
    return plain.ModulationWeights(
        convert(f_weight), convert(f_bias), kernels, convert(h_weight), convert(h_bias), normalize
    )


def results(function, x, weights, seed=0):
    """Output and every gradient of a modulation."""
    out = function(x, weights)
    torch.manual_seed(seed)
    grad = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    inputs = [x, *tensors_of(weights)]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_close(expected, got, tolerance):
    assert len(expected) == len(got)
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert a.shape == b.shape
        error = (a - b.double()).abs().max() / a.abs().max().clamp_min(1e-3)
        assert error < tolerance, f'number {i}: {error:.1e}'


def compare(path, shape, tolerance, dtype=torch.float32, layout=lambda x: x, **kwargs):
    torch.manual_seed(1)
    weights = make_weights(**kwargs)
    x = layout(torch.randn(*shape, DIM, dtype=torch.float64)).requires_grad_()
    expected = results(plain.modulate, x, weights)
    narrow = layout(x.detach().to(dtype)).requires_grad_()
    with ops.use_path(path):
        got = results(ops.modulate, narrow, to(weights, dtype))
    assert_close(expected, got, tolerance)


@paths
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('window', [3, 9])
def test_agrees_at_awkward_shapes(path, shape, window):
    compare(path, shape, 1e-5, window=window)


@paths
@pytest.mark.parametrize('levels', [1, 2, 4])
def test_agrees_for_any_number_of_levels(path, levels):
    compare(path, (2, 9, 14), 1e-5, levels=levels)


@pytest.mark.parametrize('path', ['pytorch', 'plain'])
def test_no_level_at_all(path):
    compare(path, (2, 9, 14), 1e-5, levels=0)


@needs_numba
@pytest.mark.parametrize('window', numba_path.SIZES)
def test_agrees_for_every_kernel_numba_has_loops_for(window):
    compare('numba', (1, 6, 23), 1e-5, levels=1, window=window)


@paths
@pytest.mark.parametrize('kwargs', [dict(bias=False), dict(normalize=True)], ids=str)
def test_agrees_with_options(path, kwargs):
    compare(path, (2, 9, 14), 1e-5, **kwargs)


@paths
def test_agrees_on_strided_features(path):
    def channels_first(x):
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    compare(path, (2, 9, 14), 1e-5, layout=channels_first)
    compare(path, (2, 9, 14), 1e-5, layout=lambda x: x.repeat_interleave(2, 2)[:, :, ::2])


def test_agrees_in_double_and_half_precision():
    compare('pytorch', (2, 9, 14), 1e-12, dtype=torch.float64)
    compare('pytorch', (1, 33, 40), 1e-12, dtype=torch.float64)
    # bfloat16 keeps 8 bits; every tensor on the way is rounded to them once or more.
    compare('pytorch', (1, 9, 14), 0.06, dtype=torch.bfloat16)
    compare('pytorch', (1, 33, 40), 0.06, dtype=torch.bfloat16)


@pytest.mark.parametrize('path', ['pytorch', 'plain'])
@pytest.mark.parametrize('shape', [(2, 3, 4), (1, 33, 32)], ids=str)
def test_gradcheck(path, shape):
    torch.manual_seed(0)
    weights = make_weights(levels=2)
    x = torch.randn(*shape, DIM, dtype=torch.float64, requires_grad=True)

    def function(x, f_weight, f_bias, kernel0, kernel1, h_weight, h_bias):
        return ops.modulate(
            x, plain.ModulationWeights(f_weight, f_bias, (kernel0, kernel1), h_weight, h_bias)
        )

    with ops.use_path(path):
        assert torch.autograd.gradcheck(
            function, (x, *tensors_of(weights)), fast_mode=True, atol=1e-6
        )


@pytest.fixture
def poisoned(monkeypatch):
    """Make uninitialised memory visible: whatever is not written stays NaN."""

    def poison(function):
        def poisoned(*args, **kwargs):
            out = function(*args, **kwargs)
            return out.fill_(torch.nan) if out.is_floating_point() else out

        return poisoned

    monkeypatch.setattr(torch, 'empty', poison(torch.empty))
    monkeypatch.setattr(torch, 'empty_like', poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, 'new_empty', poison(torch.Tensor.new_empty))


@paths
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_leaves_nothing_unwritten(path, shape, poisoned):
    compare(path, shape, 1e-5)


def test_poison_reaches_the_paths(poisoned):
    assert torch.ones(3).new_empty(2).isnan().all()
    assert torch.empty_like(torch.ones(3)).isnan().all()


@paths
def test_nan_stays_nan(path):
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(1, 9, 14, DIM)
    x[0, 4, 4, 0] = torch.nan
    with ops.use_path(path), torch.no_grad():
        assert ops.modulate(x, weights)[0, 4, 4].isnan().all()


@paths
def test_large_activations_do_not_overflow(path):
    weights = to(make_weights(), torch.float32)
    x = 1e4 * torch.randn(1, 9, 14, DIM, requires_grad=True)
    expected = results(
        plain.modulate, x.detach().double().requires_grad_(), to(weights, torch.float64)
    )
    with ops.use_path(path):
        assert_close(expected, results(ops.modulate, x, weights), 1e-5)


@paths
def test_same_bits_every_time(path):
    weights = make_weights(window=9, dtype=torch.float32)
    x = torch.randn(2, 33, 40, DIM, requires_grad=True)
    with ops.use_path(path):
        first = results(ops.modulate, x, weights)
        for _ in range(3):
            for a, b in zip(first, results(ops.modulate, x, weights), strict=True):
                assert torch.equal(a, b)


@needs_numba
@pytest.mark.parametrize('threads', [1, 2, 3])
def test_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare('numba', (2, 9, 14), 1e-5)
    finally:
        torch.set_num_threads(before)


@needs_numba
def test_threads_with_nothing_to_do():
    torch.manual_seed(0)
    module = FocalModulation(1, 3, 2)
    x = torch.randn(1, 5, 6, 1)
    with ops.use_path('plain'):
        expected = module(x)
    with ops.use_path('numba'):
        torch.testing.assert_close(module(x), expected)


@needs_numba
def test_where_no_compiled_code_can_be_left(tmp_path):
    """Neither the package's folder nor the user's cache can be written to."""
    code = (
        'import numba.core.caching as caching; caching.CacheImpl._locator_classes = [];'
        'import torch; from mmfocalnet import FocalModulation, ops; m = FocalModulation(4, 3, 1);'
        "ops.use_path('numba').__enter__(); m(torch.randn(1, 5, 6, 4)).sum().backward();"
        "print('done')"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.endswith('done\n'), result.stderr


@paths
def test_inference_gives_the_same_bits_as_training(path):
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(2, 9, 14, DIM)
    with ops.use_path(path):
        trained = ops.modulate(x, weights).detach()
        with torch.no_grad():
            assert torch.equal(ops.modulate(x, weights), trained)


@paths
def test_refuses_double_backward(path):
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(1, 9, 14, DIM, requires_grad=True)
    with ops.use_path(path):
        out = ops.modulate(x, weights).sum()
    with pytest.raises(RuntimeError, match=r"second derivatives .*use_path\('plain'\)"):
        torch.autograd.grad(out, x, create_graph=True)


def test_mlp_refuses_double_backward():
    x, weight = torch.randn(5, DIM, requires_grad=True), torch.randn(DIM, DIM)
    out = ops.feed_forward(x, weight, None, weight, None).sum()
    with pytest.raises(RuntimeError, match='second derivatives'):
        torch.autograd.grad(out, x, create_graph=True)


def test_plain_path_can_be_differentiated_twice():
    weights = make_weights(levels=1)
    x = torch.randn(1, 3, 4, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: plain.modulate(x, weights), (x,), fast_mode=True)


def test_empty_batch():
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(0, 9, 14, DIM, requires_grad=True)
    out = ops.modulate(x, weights)
    out.sum().backward()
    assert out.shape == x.shape == x.grad.shape


# --------------------------------------------------------------------------------------------
# What is kept for backward
# --------------------------------------------------------------------------------------------


def kept(function):
    """Sizes of the distinct tensors that autograd keeps, in elements."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return storages, out


@pytest.mark.parametrize(
    ('path', 'most'),
    [
        # Input, query, context with gates, modulator and one context per level.
        pytest.param('numba', 4 + 3, marks=needs_numba),
        # Input, query with context and gates (2), gated sum, modulator and the same.
        ('pytorch', 5 + 3),
    ],
)
def test_few_tensors_are_kept(path, most):
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(2, 33, 40, DIM, requires_grad=True)
    with ops.use_path(path):
        storages, out = kept(lambda: ops.modulate(x, weights))
    # Gates are a third of a full-size tensor at this small width.
    full = sum(storages.values()) / x.numel()
    gates = 4 / DIM
    small = sum(tensor.numel() for tensor in tensors_of(weights)) / x.numel()
    assert most <= full <= most + gates + 2 * small + 0.1
    assert out.shape == x.shape


def test_wide_hidden_layers_are_not_kept(monkeypatch):
    monkeypatch.setattr(pytorch_path, '_HIDDEN_KEPT', 0)
    x = torch.randn(3, 11, 7, DIM, requires_grad=True)
    fc1, fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
    arguments = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    storages, _ = kept(lambda: ops.feed_forward(x, *arguments))
    assert x.numel() in storages.values()
    assert all(size <= x.numel() for size in storages.values())


@pytest.mark.parametrize(
    ('path', 'most'),
    [
        # Both norms' inputs and outputs, and the projection's input, beside the above less x.
        pytest.param('numba', 5 + 6, marks=needs_numba),
        ('pytorch', 5 + 7),
        # Also GELU of each level, and the hidden layer before and after GELU.
        ('plain', 5 + 8 + 3 + 8),
    ],
)
def test_a_block_keeps_half_of_what_plain_pytorch_keeps(path, most, monkeypatch):
    monkeypatch.setattr(pytorch_path, '_HIDDEN_KEPT', 0)
    dim = 64
    block = FocalNetBlock(dim, dict(focal_window=3, focal_level=3))
    x = torch.randn(1, 40, 50, dim, requires_grad=True)
    with ops.use_path(path):
        storages, _ = kept(lambda: block(x))
    parameters = {parameter.data_ptr() for parameter in block.parameters()}
    full = sum(size for at, size in storages.items() if at not in parameters) / x.numel()
    assert most <= full < most + 0.3


def test_hidden_layer_is_kept_once_where_it_is_small():
    x = torch.randn(300, DIM, requires_grad=True)
    fc1, fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
    storages, _ = kept(lambda: ops.feed_forward(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias))
    assert list(storages.values()).count(4 * x.numel()) == 1


# --------------------------------------------------------------------------------------------
# The MLP
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('rows', [(1,), (2, 5, 3), (700,)], ids=str)
def test_feed_forward_agrees(bias, keep, rows, monkeypatch, poisoned):
    monkeypatch.setattr(pytorch_path, '_HIDDEN_KEPT', 2**23 if keep else 0)
    monkeypatch.setattr(pytorch_path, '_HIDDEN_CHUNK', 1)  # 256 rows at a time.
    torch.manual_seed(0)
    fc1, fc2 = nn.Linear(DIM, 4 * DIM, bias=bias), nn.Linear(4 * DIM, DIM, bias=bias)
    x = torch.randn(*rows, DIM, requires_grad=True)
    answers = []
    for function, dtype in ((plain.feed_forward, torch.float64), (ops.feed_forward, torch.float32)):
        fc1, fc2, x = fc1.to(dtype), fc2.to(dtype), x.detach().to(dtype).requires_grad_()
        out = function(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        inputs = [x, *fc1.parameters(), *fc2.parameters()]
        grad = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        answers.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    assert_close(*answers, 1e-5)


def test_feed_forward_gradcheck():
    torch.manual_seed(0)
    fc1, fc2 = nn.Linear(3, 8).double(), nn.Linear(8, 3).double()
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    with ops.use_path('pytorch'):
        assert torch.autograd.gradcheck(ops.feed_forward, inputs)


# --------------------------------------------------------------------------------------------
# The choice
# --------------------------------------------------------------------------------------------


@needs_numba
def test_explain_names_the_path_and_why_not_the_others():
    text = ops.explain((1, 200, 304, 96), focal_window=9, focal_level=3)
    assert text.splitlines()[-1] == 'numba: runs'
    assert text.startswith('triton: not used, ')


@pytest.mark.parametrize(
    ('kwargs', 'reason'),
    [
        (dict(dtype=torch.float64), 'it computes in float32, not in torch.float64'),
        (dict(focal_level=0), 'it takes 1 to 8 focal levels, not 0'),
        (dict(focal_window=21), 'it takes kernels from 3 to 19, not of 21'),
        (dict(shape=(0, 9, 9, 4)), 'the features are empty'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_numba_says_why_not(kwargs, reason):
    defaults = dict(shape=(1, 9, 9, 4), focal_window=3, focal_level=1)
    assert f'numba: not used, {reason}' in ops.explain(**{**defaults, **kwargs})


def test_numba_and_pytorch_are_for_the_cpu():
    case = Case(shape=(1, 9, 9, 4), sizes=(3,), device='cuda')
    assert numba_path.reason_not(case) == 'the features are on cuda, not on the CPU'
    assert pytorch_path.reason_not(case).startswith('the features are on cuda')


def test_without_numba_pytorch_takes_over(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    text = ops.explain((1, 9, 9, 4), focal_window=3, focal_level=1)
    assert 'numba: not used, numba is not installed (pip install numba)' in text
    assert text.endswith('pytorch: runs')


def test_without_gnu_threads_pytorch_takes_over(monkeypatch):
    monkeypatch.setattr(numba_path, 'openmp', lambda: None)
    text = ops.explain((1, 9, 9, 4), focal_window=3, focal_level=1)
    assert 'GNU OpenMP' in text and text.endswith('pytorch: runs')


def test_a_path_asked_for_that_cannot_run_says_why():
    x = torch.randn(1, 9, 14, DIM, dtype=torch.float64)
    with (
        pytest.raises(ConfigError, match="'numba' cannot run here: it computes in float32"),
        ops.use_path('numba'),
    ):
        ops.modulate(x, make_weights())


def test_an_unknown_path_is_named():
    with (
        pytest.raises(ConfigError, match="no path 'cuda'; there are triton, numba"),
        ops.use_path('cuda'),
    ):
        pass


def test_every_path_is_tested_or_tested_elsewhere():
    assert set(ops.PATHS) == {'triton', 'plain', *MODULATION}


def test_skipped_paths_are_logged(caplog, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmfocalnet.ops.dispatch.print_log', lambda message, **kwargs: lines.append(message)
    )
    x = torch.randn(1, 5, 87, DIM, dtype=torch.float64)
    ops.modulate(x, make_weights())
    assert any('numba: not used, it computes in float32' in line for line in lines)


@needs_numba
def test_autocast_in_backward_alone_changes_nothing(monkeypatch):
    monkeypatch.setattr(pytorch_path, '_HIDDEN_KEPT', 0)
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(1, 9, 14, DIM, requires_grad=True)
    grads = []
    for autocast in (False, True):
        with ops.use_path('numba'):
            out = ops.modulate(x, weights)
            fc1 = weights.h_weight.flatten(1)
            out = ops.feed_forward(out, fc1, None, fc1, None)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            grads.append(torch.autograd.grad(out, [x, *tensors_of(weights)], torch.ones_like(out)))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_weights_of_another_type_do_not_reach_the_loops(dtype):
    weights = make_weights(dtype=torch.float32)
    mixed = weights._replace(kernels=tuple(kernel.to(dtype) for kernel in weights.kernels))
    x = torch.randn(1, 9, 14, DIM)
    with ops.use_path('numba'), pytest.raises(ConfigError, match='weights are of another type'):
        ops.modulate(x, mixed)


@paths
def test_frozen_parts(path):
    module = FocalModulation(DIM, 3, 2)
    module.focal_layers.requires_grad_(False)
    module.h.requires_grad_(False)
    x = torch.randn(1, 9, 14, DIM)
    grads = []
    for name in (path, 'plain'):
        module.zero_grad()
        with ops.use_path(name):
            module(x).square().sum().backward()
        grads.append(module.f.weight.grad.clone())
        assert module.h.weight.grad is None
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@needs_numba
def test_inference_keeps_nothing(monkeypatch):
    seen = []
    original = numba_path._run
    monkeypatch.setattr(
        numba_path,
        '_run',
        lambda *args, **kwargs: seen.append(args[3]) or original(*args, **kwargs),
    )
    weights = make_weights(dtype=torch.float32)
    with ops.use_path('numba'), torch.no_grad():
        ops.modulate(torch.randn(1, 9, 14, DIM), weights)
    assert seen == [[]]


@paths
def test_threads_of_python_do_not_disturb_each_other(path):
    weights = make_weights(dtype=torch.float32)
    inputs = [torch.randn(1, 9, 14, DIM) for _ in range(8)]

    def compute(x):
        with ops.use_path(path), torch.no_grad():
            return ops.modulate(x, weights)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for x, got in zip(inputs, pool.map(compute, inputs), strict=True):
                assert torch.equal(compute(x), got)


def test_counters_and_transforms_take_the_plain_path():
    from torch.utils.flop_counter import FlopCounterMode

    weights = make_weights(dtype=torch.float32)
    x = torch.randn(1, 9, 14, DIM)
    with FlopCounterMode(display=False) as counter:
        ops.modulate(x, weights)
    convolutions = 2 * DIM * 9 * 14 * (9 + 25 + 49)
    products = 2 * 9 * 14 * DIM * (2 * DIM + 4 + DIM)
    assert counter.get_total_flops() == convolutions + products
    gradient = torch.func.grad(lambda x: ops.modulate(x, weights).sum())(x)
    expected = x.clone().requires_grad_()
    ops.modulate(expected, weights).sum().backward()
    torch.testing.assert_close(gradient, expected.grad, rtol=1e-4, atol=1e-4)


def test_a_numba_that_fails_is_left_out(monkeypatch):
    def fail():
        raise ImportError('Numba needs NumPy 2.2 or less')

    monkeypatch.setattr(numba_path, '_kernels', fail)
    text = ops.explain((1, 9, 9, 4), focal_window=3, focal_level=1)
    assert 'numba does not work here (Numba needs NumPy 2.2 or less)' in text
    assert text.endswith('pytorch: runs')


@pytest.mark.parametrize('change', [dict(dilation=2, padding=2), dict(bias=True, padding=1)])
def test_unusual_convolutions_are_called(change):
    module = FocalModulation(DIM, 3, 1)
    module.focal_layers[0][0] = nn.Conv2d(DIM, DIM, 3, groups=DIM, **{'bias': False, **change})
    calls = []
    forward = module.focal_layers[0][0].forward
    module.focal_layers[0][0].forward = lambda x: calls.append(1) or forward(x)
    x = torch.randn(1, 9, 14, DIM)
    called = module(x)
    del module.focal_layers[0][0].forward
    assert torch.equal(module(x), called) and calls == [1]


def test_autocast_is_followed():
    module = FocalModulation(DIM, 3, 2)
    x = torch.randn(1, 9, 14, DIM)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert module.f.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), module(x), atol=0.02, rtol=0.05)


def replaced_parts():
    """Changes of a modulation that its layers follow and no operator knows."""

    def gelu(module):
        module.focal_layers[0][1] = nn.GELU('tanh')

    def reflect(module):
        module.focal_layers[0][0].padding_mode = 'reflect'
        module.focal_layers[0][0]._reversed_padding_repeated_twice = [1, 1, 1, 1]

    def norm(module):
        module.focal_layers[0].append(nn.BatchNorm2d(DIM))

    def grouped(module):
        module.h = nn.Conv2d(DIM, DIM, 1, groups=2)

    return [gelu, reflect, norm, grouped]


@pytest.mark.parametrize('change', replaced_parts(), ids=lambda change: change.__name__)
def test_changed_layers_are_called(change):
    module = FocalModulation(DIM, 3, 2)
    change(module)
    x = torch.randn(2, 9, 14, DIM)
    assert torch.equal(module(x), module.proj(module._by_layer(x)))


def test_dropout_of_the_mlp_is_followed():
    x = torch.randn(2, 30, DIM)
    mlp = Mlp(DIM, 4 * DIM, drop=0.5).eval()
    expected = mlp(x)
    mlp.drop.train()  # Monte Carlo dropout
    torch.manual_seed(0)
    got = mlp(x)
    torch.manual_seed(0)
    assert torch.equal(got, mlp.drop(mlp.fc2(mlp.drop(mlp.act(mlp.fc1(x))))))
    mlp.drop = nn.Identity()
    mlp.act = nn.GELU('tanh')
    assert torch.equal(mlp(x), mlp.fc2(mlp.act(mlp.fc1(x))))
    assert not torch.equal(mlp(x), expected)


@paths
def test_results_may_be_changed_in_place(path):
    weights = make_weights(dtype=torch.float32)
    x = torch.randn(1, 20, 20, DIM, requires_grad=True)
    weight = weights.h_weight.flatten(1)
    for function in (
        lambda: ops.modulate(x, weights),
        lambda: ops.linear(x, weight, None),
        lambda: ops.feed_forward(x, weight, None, weight, None),
    ):
        with ops.use_path(path):
            expected = torch.autograd.grad((2 * function()).sum(), x)[0]
            got = torch.autograd.grad(function().mul_(2).sum(), x)[0]
        assert torch.equal(got, expected)


@needs_numba
def test_default_type_and_device_are_not_the_loops():
    module, x = FocalModulation(16, 9, 3), torch.randn(1, 30, 30, 16)
    with ops.use_path('numba'):
        expected = module(x)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert torch.equal(module(x), expected)
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.device('meta'):
            assert torch.equal(module(x), expected)


@needs_numba
def test_hooks_on_saved_tensors_may_change_their_layout():
    module, x = FocalModulation(DIM, 3, 2), torch.randn(1, 9, 14, DIM)
    grads = []

    def other_layout(tensor):
        if tensor.dim() < 2:
            return tensor
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)

    for unpack in (lambda tensor: tensor, other_layout):
        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            out = module(x)
        out.square().sum().backward()
        grads.append([parameter.grad for parameter in module.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@paths
def test_frozen_weights_cost_no_gradient(path, monkeypatch):
    calls = []

    def count(*args, **kwargs):
        calls.append(1)
        raise AssertionError('the gradient of a frozen weight was computed')

    monkeypatch.setattr(products, 'weight_grad', count)
    monkeypatch.setattr(numba_path, 'weight_grad', count)
    monkeypatch.setattr(pytorch_path, '_kernel_grad', count)
    weights = make_weights(dtype=torch.float32)
    weights = weights._replace(
        f_weight=weights.f_weight.detach(),
        h_weight=weights.h_weight.detach(),
        kernels=tuple(kernel.detach() for kernel in weights.kernels),
    )
    x = torch.randn(1, 20, 20, DIM, requires_grad=True)
    weight = weights.h_weight.flatten(1)
    with ops.use_path(path):
        out = ops.feed_forward(ops.modulate(x, weights), weight, None, weight, None)
        ops.linear(out, weight, None).sum().backward()
    assert x.grad is not None and not calls


def test_weights_of_an_unusual_class_go_the_plain_way():
    class Quantised(torch.Tensor):
        pass

    weight = torch.randn(DIM, DIM).as_subclass(Quantised)
    x = torch.randn(200, DIM)
    assert Case.of(x, [weight]).tensor == 'Quantised'
    with ops.use_path('pytorch'), pytest.raises(ConfigError, match='a Quantised, not a plain'):
        ops.linear(x, weight, None)


def test_linear_takes_what_pytorch_takes():
    weight = torch.randn(4, DIM, requires_grad=True)
    for shape in ((DIM,), (2, 3, DIM), (0, DIM)):
        x = torch.randn(shape)
        torch.testing.assert_close(
            ops.linear(x, weight, None), nn.functional.linear(x, weight), rtol=1e-5, atol=1e-5
        )
    z = torch.randn(3, DIM, dtype=torch.cdouble)
    w = torch.randn(4, DIM, dtype=torch.cdouble, requires_grad=True)
    out = torch.randn(3, 4, dtype=torch.cdouble)
    expected = torch.autograd.grad(nn.functional.linear(z, w), w, out)[0]
    assert torch.equal(torch.autograd.grad(ops.linear(z, w, None), w, out)[0], expected)


def test_linear_refuses_double_backward():
    x, weight = torch.randn(200, DIM, requires_grad=True), torch.randn(4, DIM)
    with pytest.raises(RuntimeError, match='second derivatives'):
        torch.autograd.grad(ops.linear(x, weight, None).sum(), x, create_graph=True)


def test_transforms_work_and_batched_gradients_are_refused():
    module = FocalModulation(DIM, 3, 2)
    x = torch.randn(3, 1, 5, 6, DIM)
    mapped = torch.func.vmap(module)(x)
    torch.testing.assert_close(mapped, torch.stack([module(one) for one in x]))
    with torch.autograd.forward_ad.dual_level():
        dual = module(torch.autograd.forward_ad.make_dual(x[0], x[0]))
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent is not None
    with pytest.raises(RuntimeError, match=r'batched gradients .*use_path'):
        torch.autograd.functional.jacobian(
            lambda a: ops.modulate(a, module._weights()), x[0], vectorize=True
        )


@pytest.mark.parametrize('watched', ['f', 'h', 'focal_layers.0', 'focal_layers.1.0'])
def test_hooks_see_their_layer(watched):
    module = FocalModulation(DIM, 3, 2)
    x = torch.randn(1, 9, 14, DIM)
    expected = module(x)
    seen = []
    module.get_submodule(watched).register_forward_hook(lambda *args: seen.append(args[2].shape))
    torch.testing.assert_close(module(x), expected)
    assert len(seen) == 1


def test_replaced_layers_are_called():
    class Zero(nn.Linear):
        def forward(self, x):
            return 0 * super().forward(x)

    module = FocalModulation(DIM, 3, 2)
    module.f = Zero(DIM, 2 * DIM + 3)
    module.proj.bias.data.zero_()
    assert module(torch.randn(1, 9, 14, DIM)).abs().max() == 0
