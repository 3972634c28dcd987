"""Numbers and gradients of every CPU path, compared with the reference in float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from operator_inputs import (
    DIM,
    assert_close,
    compare,
    convert,
    cpu_paths,
    make_weights,
    needs_numba,
    results,
    tensors_of,
    to,
)
from torch import nn

from mmfocalnet import ops
from mmfocalnet.models import FocalModulation, FocalNetBlock
from mmfocalnet.ops import (
    layers,
    matrix_products,
    numba_path,
    numba_support,
    pytorch_path,
    reference,
)

# One pixel, a row, a column, smaller than the kernels, odd, large enough for Fourier transforms.
SHAPES = [(2, 1, 1), (1, 1, 7), (1, 6, 1), (2, 5, 3), (1, 9, 14), (2, 33, 40)]


@pytest.fixture
def nan_memory(monkeypatch):
    """Fill new memory with NaN, so that elements that are never written become visible."""

    def filled(function):
        def fill(*args, **kwargs):
            out = function(*args, **kwargs)
            return out.fill_(torch.nan) if out.is_floating_point() else out

        return fill

    monkeypatch.setattr(torch, 'empty', filled(torch.empty))
    monkeypatch.setattr(torch, 'empty_like', filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, 'new_empty', filled(torch.Tensor.new_empty))


def test_nan_memory_fixture_fills_memory(nan_memory):
    assert torch.ones(3).new_empty(2).isnan().all()
    assert torch.empty_like(torch.ones(3)).isnan().all()


@cpu_paths
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('window', [3, 9])
def test_agrees_at_any_shape_and_writes_all_elements(path, shape, window, nan_memory):
    compare(path, shape, window=window)


@cpu_paths
@pytest.mark.parametrize(
    'kwargs',
    [dict(levels=1), dict(levels=2), dict(levels=4), dict(bias=False), dict(normalize=True)],
    ids=str,
)
def test_agrees_with_options(path, kwargs):
    compare(path, (2, 9, 14), **kwargs)


@pytest.mark.parametrize('path', ['pytorch', 'reference'])
def test_agrees_without_focal_levels(path):
    compare(path, (2, 9, 14), levels=0)


@needs_numba
@pytest.mark.parametrize('window', numba_support.KERNEL_SIZES)
def test_numba_agrees_for_every_kernel_size(window):
    compare('numba', (1, 6, 23), levels=1, window=window)


@needs_numba
@pytest.mark.parametrize('threads', [1, 3])
def test_numba_agrees_on_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare('numba', (2, 9, 14))
    finally:
        torch.set_num_threads(before)


@cpu_paths
def test_gradients_of_kernels_have_the_strides_of_the_kernels(path):
    weights = make_weights(window=5)
    with ops.use_path(path):
        out = ops.modulate(torch.randn(1, 9, 14, DIM), weights)
    grads = torch.autograd.grad(out.sum(), weights.kernels)
    assert [grad.stride() for grad in grads] == [kernel.stride() for kernel in weights.kernels]


@cpu_paths
def test_agrees_on_strided_features(path):
    def channels_first(x):
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    compare(path, (2, 9, 14), layout=channels_first)
    compare(path, (2, 9, 14), layout=lambda x: x.repeat_interleave(2, 2)[:, :, ::2])


@pytest.mark.parametrize('shape', [(2, 9, 14), (1, 33, 40)])
# bfloat16 has 8 bits of precision, and each intermediate tensor is rounded at least once.
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.bfloat16, 0.06)])
def test_pytorch_path_agrees_in_other_precisions(shape, dtype, tolerance):
    compare('pytorch', shape, tolerance, dtype=dtype)


@pytest.mark.parametrize('path', ['pytorch', 'reference'])
@pytest.mark.parametrize('shape', [(2, 3, 4), (1, 33, 32)], ids=str)
def test_gradcheck_of_modulate(path, shape):
    weights = make_weights(levels=2, dtype=torch.float64)
    x = torch.randn(*shape, DIM, dtype=torch.float64, requires_grad=True)

    def function(x, f_weight, f_bias, kernel0, kernel1, h_weight, h_bias):
        return ops.modulate(
            x, ops.ModulationWeights(f_weight, f_bias, (kernel0, kernel1), h_weight, h_bias)
        )

    with ops.use_path(path):
        assert torch.autograd.gradcheck(
            function, (x, *tensors_of(weights)), fast_mode=True, atol=1e-6
        )


def test_gradcheck_of_feed_forward():
    fc1, fc2 = nn.Linear(3, 8).double(), nn.Linear(8, 3).double()
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    with ops.use_path('pytorch'):
        assert torch.autograd.gradcheck(ops.feed_forward, inputs)


def test_reference_has_second_derivatives():
    weights = make_weights(levels=1, dtype=torch.float64)
    x = torch.randn(1, 3, 4, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda x: reference.modulate(x, weights), (x,), fast_mode=True
    )


@cpu_paths
def test_nan_in_the_input_gives_nan(path):
    x = torch.randn(1, 9, 14, DIM)
    x[0, 4, 4, 0] = torch.nan
    with ops.use_path(path), torch.no_grad():
        assert ops.modulate(x, make_weights())[0, 4, 4].isnan().all()


@cpu_paths
def test_large_activations_do_not_overflow(path):
    weights = make_weights()
    x = 1e4 * torch.randn(1, 9, 14, DIM, requires_grad=True)
    double = x.detach().double().requires_grad_()
    expected = results(reference.modulate, double, to(weights, torch.float64))
    with ops.use_path(path):
        assert_close(expected, results(ops.modulate, x, weights), 1e-5)


@cpu_paths
def test_results_are_bit_identical_in_each_run_and_in_inference(path):
    weights = make_weights(window=9)
    x = torch.randn(2, 33, 40, DIM, requires_grad=True)
    with ops.use_path(path):
        first = results(ops.modulate, x, weights)
        for _ in range(2):
            for a, b in zip(first, results(ops.modulate, x, weights), strict=True):
                assert torch.equal(a, b)
        with torch.no_grad():
            assert torch.equal(ops.modulate(x, weights), first[0])


@needs_numba
def test_numba_with_fewer_channels_than_threads():
    module = FocalModulation(1, 3, 2)
    x = torch.randn(1, 5, 6, 1)
    with ops.use_path('reference'):
        expected = module(x)
    with ops.use_path('numba'):
        torch.testing.assert_close(module(x), expected)


@needs_numba
def test_numba_compiles_without_a_writable_cache(monkeypatch):
    monkeypatch.setattr('numba.core.caching.CacheImpl._locator_classes', [])

    def kernel(arguments):
        pass

    assert numba_path._kernels()._compiled(kernel).address


def test_empty_batch():
    x = torch.randn(0, 9, 14, DIM, requires_grad=True)
    out = ops.modulate(x, make_weights())
    out.sum().backward()
    assert out.shape == x.shape == x.grad.shape


@cpu_paths
def test_frozen_weights_get_no_gradient(path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError('the gradient of a frozen weight was computed')

    monkeypatch.setattr(matrix_products, 'weight_grad', fail)
    monkeypatch.setattr(numba_path, 'weight_grad', fail)
    monkeypatch.setattr(pytorch_path, '_kernel_grad', fail)
    weights = convert(make_weights(), torch.Tensor.detach)
    x = torch.randn(1, 20, 20, DIM, requires_grad=True)
    weight = weights.h_weight.flatten(1)
    with ops.use_path(path):
        out = ops.feed_forward(ops.modulate(x, weights), weight, None, weight, None)
        ops.linear(out, weight, None).sum().backward()
    assert x.grad.any()


@cpu_paths
def test_partly_frozen_modules_train(path):
    module = FocalModulation(DIM, 3, 2)
    module.focal_layers.requires_grad_(False)
    module.h.requires_grad_(False)
    x = torch.randn(1, 9, 14, DIM)
    grads = []
    for name in (path, 'reference'):
        module.zero_grad()
        with ops.use_path(name):
            module(x).square().sum().backward()
        grads.append(module.f.weight.grad.clone())
        assert module.h.weight.grad is None
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@cpu_paths
def test_concurrent_python_threads(path):
    weights = make_weights()
    inputs = [torch.randn(1, 9, 14, DIM) for _ in range(8)]

    def compute(x):
        with ops.use_path(path), torch.no_grad():
            return ops.modulate(x, weights)

    expected = [compute(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for actual, wanted in zip(pool.map(compute, inputs * 5), expected * 5, strict=True):
            assert torch.equal(actual, wanted)


@cpu_paths
def test_results_may_be_modified_in_place(path):
    weights = make_weights()
    x = torch.randn(1, 20, 20, DIM, requires_grad=True)
    weight = weights.h_weight.flatten(1)
    for function in (
        lambda: ops.modulate(x, weights),
        lambda: ops.linear(x, weight, None),
        lambda: ops.feed_forward(x, weight, None, weight, None),
    ):
        with ops.use_path(path):
            expected = torch.autograd.grad((2 * function()).sum(), x)[0]
            actual = torch.autograd.grad(function().mul_(2).sum(), x)[0]
        assert torch.equal(actual, expected)


@needs_numba
def test_numba_ignores_default_dtype_and_device():
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


@needs_numba
def test_autocast_in_backward_alone_changes_nothing(monkeypatch):
    monkeypatch.setattr(layers, '_HIDDEN_KEPT', 0)
    weights = make_weights()
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


def test_autocast_is_followed():
    module = FocalModulation(DIM, 3, 2)
    x = torch.randn(1, 9, 14, DIM)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(x)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert module.f.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), module(x), atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    'make', [lambda: torch.randn(2 * DIM)[::2], lambda: torch.randn(1).expand(DIM)]
)
@pytest.mark.parametrize('operator', ['modulate', 'linear', 'feed_forward', 'embed_patches'])
def test_biases_of_any_stride(operator, make):
    weights = make_weights()._replace(h_bias=make())
    x, square = torch.randn(1, 36, 24, DIM), weights.h_weight.flatten(1)
    arguments = {
        'modulate': (x, weights),
        'linear': (x, square, make()),
        'feed_forward': (x, square, make(), square, make()),
        'embed_patches': (x.permute(0, 3, 1, 2), torch.randn(DIM, DIM, 2, 2), make()),
    }[operator]
    expected = getattr(reference, operator, torch.nn.functional.linear)(*arguments)
    torch.testing.assert_close(getattr(ops, operator)(*arguments), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(('patch_size', 'shape'), [(4, (2, 3, 8, 12)), (2, (1, 16, 34, 30))])
def test_patch_embedding_agrees(patch_size, shape, memory_format, bias, nan_memory):
    conv = nn.Conv2d(shape[1], DIM, patch_size, patch_size, bias=bias)
    x = torch.randn(shape).to(memory_format=memory_format)
    answers = []
    functions = (reference.embed_patches, torch.float64), (ops.embed_patches, torch.float32)
    for function, dtype in functions:
        conv, x = conv.to(dtype), x.detach().to(dtype).requires_grad_()
        out = function(x, conv.weight, conv.bias)
        grad = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        answers.append([out, *torch.autograd.grad(out, [x, *conv.parameters()], grad)])
    assert answers[1][0].is_contiguous()
    assert_close(*answers, 1e-5)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('rows', [(1,), (2, 5, 3), (700,)], ids=str)
def test_feed_forward_agrees(bias, keep, rows, monkeypatch, nan_memory):
    monkeypatch.setattr(layers, '_HIDDEN_KEPT', 2**23 if keep else 0)
    monkeypatch.setattr(layers, '_HIDDEN_CHUNK', 1)  # 256 rows at a time
    fc1, fc2 = nn.Linear(DIM, 4 * DIM, bias=bias), nn.Linear(4 * DIM, DIM, bias=bias)
    x = torch.randn(*rows, DIM, requires_grad=True)
    answers = []
    functions = (reference.feed_forward, torch.float64), (ops.feed_forward, torch.float32)
    for function, dtype in functions:
        fc1, fc2, x = fc1.to(dtype), fc2.to(dtype), x.detach().to(dtype).requires_grad_()
        out = function(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        inputs = [x, *fc1.parameters(), *fc2.parameters()]
        grad = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        answers.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    assert_close(*answers, 1e-5)


@pytest.mark.parametrize('shape', [(DIM,), (2, 3, DIM), (0, DIM)])
def test_linear_accepts_any_shape(shape):
    x, weight = torch.randn(shape), torch.randn(4, DIM, requires_grad=True)
    expected = nn.functional.linear(x, weight)
    torch.testing.assert_close(ops.linear(x, weight, None), expected, rtol=1e-5, atol=1e-5)


def test_linear_of_complex_numbers():
    x = torch.randn(3, DIM, dtype=torch.cdouble)
    weight = torch.randn(4, DIM, dtype=torch.cdouble, requires_grad=True)
    grad = torch.randn(3, 4, dtype=torch.cdouble)
    expected = torch.autograd.grad(nn.functional.linear(x, weight), weight, grad)[0]
    assert torch.equal(torch.autograd.grad(ops.linear(x, weight, None), weight, grad)[0], expected)


# ------------------------------------------------------------------------------------------------
# Tensors kept for backward
# ------------------------------------------------------------------------------------------------


def kept(function):
    """Sizes in elements of the distinct tensors that autograd keeps, by address."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return storages


@pytest.mark.parametrize(
    ('path', 'count'),
    [
        # Input, query, context with gates, modulator and one context per level.
        pytest.param('numba', 4 + 3, marks=needs_numba),
        # Input, query with context and gates (2), gated sum, modulator and one per level.
        ('pytorch', 5 + 3),
    ],
)
def test_modulate_keeps_few_tensors(path, count):
    weights = make_weights()
    x = torch.randn(2, 33, 40, DIM, requires_grad=True)
    with ops.use_path(path):
        storages = kept(lambda: ops.modulate(x, weights))
    gates = 4 / DIM  # relative to x
    small = sum(tensor.numel() for tensor in tensors_of(weights)) / x.numel()
    assert count <= sum(storages.values()) / x.numel() <= count + gates + 2 * small + 0.1


@needs_numba
def test_numba_keeps_nothing_in_inference(monkeypatch):
    contexts = []
    run = numba_path._run
    monkeypatch.setattr(
        numba_path, '_run', lambda *args, **kwargs: contexts.append(args[3]) or run(*args, **kwargs)
    )
    with ops.use_path('numba'), torch.no_grad():
        ops.modulate(torch.randn(1, 9, 14, DIM), make_weights())
    assert contexts == [[]]


@pytest.mark.parametrize('wide', [True, False])
def test_only_narrow_hidden_layers_are_kept(wide, monkeypatch):
    if wide:
        monkeypatch.setattr(layers, '_HIDDEN_KEPT', 0)
    x = torch.randn(3, 11, 7, DIM, requires_grad=True)
    fc1, fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
    storages = kept(lambda: ops.feed_forward(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias))
    sizes = list(storages.values())
    assert x.numel() in sizes
    assert [size for size in sizes if size > x.numel()] == ([] if wide else [4 * x.numel()])


@pytest.mark.parametrize(
    ('path', 'count'),
    [
        # Inputs and outputs of both norms, input of the projection, and the above except x.
        pytest.param('numba', 5 + 6, marks=needs_numba),
        ('pytorch', 5 + 7),
        # Also GELU of each level, and the hidden layer before and after GELU.
        ('reference', 5 + 8 + 3 + 8),
    ],
)
def test_a_block_keeps_half_of_what_the_reference_keeps(path, count, monkeypatch):
    monkeypatch.setattr(layers, '_HIDDEN_KEPT', 0)
    block = FocalNetBlock(64, dict(focal_window=3, focal_level=3))
    x = torch.randn(1, 40, 50, 64, requires_grad=True)
    with ops.use_path(path):
        storages = kept(lambda: block(x))
    parameters = {parameter.data_ptr() for parameter in block.parameters()}
    full = sum(size for at, size in storages.items() if at not in parameters) / x.numel()
    assert count <= full < count + 0.3
