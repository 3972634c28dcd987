"""Weights, inputs and gradients for the tests of the operators."""

import importlib.util

import pytest
import torch

from mmfocalnet import ops
from mmfocalnet.ops import numba_support, reference

DIM = 12

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec('numba') is None or numba_support.openmp() is None,
    reason='numba or GNU OpenMP is missing',
)
CPU_PATHS = ('numba', 'pytorch', 'channels_first', 'fourier')
cpu_paths = pytest.mark.parametrize(
    'path', [pytest.param(name, marks=needs_numba if name == 'numba' else ()) for name in CPU_PATHS]
)


def make_weights(levels=3, window=3, bias=True, normalize=False, dtype=torch.float32):
    def draw(*shape):
        return (0.4 * torch.randn(*shape, dtype=torch.float64)).to(dtype).requires_grad_()

    return ops.ModulationWeights(
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


def convert(weights, function):
    """Apply a function to all tensors."""

    def apply(tensor):
        return None if tensor is None else function(tensor)

    f_weight, f_bias, kernels, h_weight, h_bias, normalize = weights
    kernels = tuple(map(apply, kernels))
    return ops.ModulationWeights(
        apply(f_weight), apply(f_bias), kernels, apply(h_weight), apply(h_bias), normalize
    )


def to(weights, dtype):
    return convert(weights, lambda tensor: tensor.detach().to(dtype).requires_grad_())


def results(function, x, weights):
    """Output and all gradients of a modulation."""
    out = function(x, weights)
    torch.manual_seed(0)
    grad = torch.randn(out.shape, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, [x, *tensors_of(weights)], grad)]


def assert_close(expected, actual, tolerance):
    for i, (a, b) in enumerate(zip(expected, actual, strict=True)):
        assert a.shape == b.shape
        error = (a - b.double()).abs().max() / a.abs().max().clamp_min(1e-3)
        assert error < tolerance, f'tensor {i}: {error:.1e}'


def compare(path, shape, tolerance=1e-5, dtype=torch.float32, layout=lambda x: x, **kwargs):
    """Compare output and gradients of a path with the reference in float64."""
    torch.manual_seed(1)
    weights = make_weights(**kwargs, dtype=torch.float64)
    x = layout(torch.randn(*shape, DIM, dtype=torch.float64)).requires_grad_()
    expected = results(reference.modulate, x, weights)
    narrow = layout(x.detach().to(dtype)).requires_grad_()
    with ops.use_path(path):
        actual = results(ops.modulate, narrow, to(weights, dtype))
    assert_close(expected, actual, tolerance)
