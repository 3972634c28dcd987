"""The numba path: focal modulation on the CPU in float32, one channel's plane at a time."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from mmfocalnet.ops.call import Call
from mmfocalnet.ops.fused_operator import FusedOperator
from mmfocalnet.ops.matrix_products import linear, linear_of_planes, linear_transposed, weight_grad
from mmfocalnet.ops.numba_support import KERNEL_SIZES, MAX_LEVELS, openmp
from mmfocalnet.ops.reference import ModulationWeights

# Elements of the gradient of f per chunk, which should stay in the cache.
_CHUNK = 2**21


def unsupported(call: Call) -> str | None:
    """Why this path cannot run a call; None if it can."""
    if call.device != 'cpu':
        return f'the features are on {call.device}, not on the CPU'
    if call.dtype != torch.float32 or call.autocast:
        return f'it computes in float32, not in {"autocast" if call.autocast else call.dtype}'
    if reason := call.unusual_input():
        return reason
    if not 1 <= len(call.kernel_sizes) <= MAX_LEVELS:
        return f'it supports 1 to {MAX_LEVELS} focal levels, got {len(call.kernel_sizes)}'
    if unknown := set(call.kernel_sizes) - set(KERNEL_SIZES):
        return f'it supports odd kernel sizes from 3 to {KERNEL_SIZES[-1]}, got {min(unknown)}'
    if call.mixed:
        return 'the weights differ from the features in dtype or device'
    if importlib.util.find_spec('numba') is None:
        return 'numba is not installed (pip install numba)'
    if openmp() is None:
        return 'PyTorch does not use GNU OpenMP (libgomp) here'
    try:
        _kernels()
    except Exception as error:  # For example a numba that does not support the installed numpy.
        return f'numba does not work here ({error})'
    return None


def modulate(x: Tensor, weights: ModulationWeights) -> Tensor:
    """Compute `reference.modulate`."""
    f_weight, f_bias, kernels, h_weight, h_bias, normalize_modulator = weights
    f_bias = f_weight.new_zeros(len(f_weight)) if f_bias is None else f_bias
    h_bias = h_weight.new_zeros(len(h_weight)) if h_bias is None else h_bias
    scale = 1 / (len(kernels) + 1) if normalize_modulator else 1.0
    return _modulate(x, f_weight, f_bias, h_weight.flatten(1), h_bias, *kernels, constant=scale)


# Eq. 3 to 6. Query and modulator are (B, P, C) with P = H * W pixels, the layout of the
# neighbouring layers; context and gates are (B, C + L + 1, P), the layout of the loops. The matrix
# products produce these layouts directly, without transposing in memory.


def _forward(tensors: Sequence[Tensor], scale: float, keep: bool) -> tuple[Tensor, list[Tensor]]:
    x, f_weight, f_bias, h_weight, h_bias, *kernels = tensors
    batch, height, width, dim = x.shape
    rows = x.reshape(batch, height * width, dim)
    query = linear(rows.flatten(0, 1), f_weight[:dim], f_bias[:dim]).view(rows.shape)
    projected = linear_transposed(rows, f_weight[dim:], f_bias[dim:])
    packed = torch.cat([kernel.flatten(1) for kernel in kernels], dim=1)
    sizes = [kernel.shape[-1] for kernel in kernels]
    totals = rows.new_empty(batch, dim, height * width)
    means = rows.new_empty(batch, dim)
    contexts = [torch.empty_like(totals) for _ in kernels] if keep else []
    _run(
        'forward',
        (batch, dim, height, width),
        sizes,
        contexts,
        projected=projected,
        kernels=packed,
        means=means,
        totals=totals,
    )
    modulator = linear_of_planes(totals, h_weight * scale, h_bias)
    out = (query * modulator).view(x.shape)
    return out, [query, projected, packed, means, modulator, *contexts] if keep else []


def _shapes(tensors: Sequence[Tensor], scale: float, keep: bool) -> list[Sequence[int]]:
    x, f_weight, _, _, _, *kernels = tensors
    batch, height, width, dim = x.shape
    rows, planes = (batch, height * width, dim), (batch, dim, height * width)
    projected = (batch, f_weight.shape[0] - dim, height * width)
    packed = (dim, sum(kernel.shape[-1] ** 2 for kernel in kernels))
    kept = [rows, projected, packed, (batch, dim), rows, *[planes] * len(kernels)]
    return [x.shape, *(kept if keep else [])]


def _backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: float,
) -> list[Tensor | None]:
    x, f_weight, _, h_weight, _, *kernels = tensors
    # The loops rely on the layout, which hooks on saved tensors may change.
    query, projected, packed, means, modulator, *contexts = (tensor.contiguous() for tensor in kept)
    with_x, with_f, with_f_bias, with_h, with_h_bias, *with_kernels = wanted
    batch, height, width, dim = x.shape
    sizes = [kernel.shape[-1] for kernel in kernels]
    rows = x.reshape(batch, height * width, dim)
    grad = grad.reshape(rows.shape)
    query_grad = grad * modulator
    modulator_grad = grad * query

    totals = linear_transposed(modulator_grad, scale * h_weight.t())
    projected_grad = torch.empty_like(projected)
    kernel_grads = torch.empty_like(packed) if any(with_kernels) else None
    gate_grads = rows.new_zeros(_threads(dim), batch, len(sizes) + 1, height * width)
    _run(
        'backward',
        (batch, dim, height, width),
        sizes,
        contexts,
        projected=projected,
        kernels=packed,
        means=means,
        totals=totals,
        projected_grad=projected_grad,
        gate_grads=gate_grads,
        kernel_grads=kernel_grads,
    )
    projected_grad[:, dim:] = gate_grads.sum(0)
    f_weight_grad = h_weight_grad = None
    f_bias_grad = f_weight.new_zeros(len(f_weight))
    x_grad = torch.empty_like(rows)
    chunk = max(256, _CHUNK // len(f_weight))
    for sample in range(batch):
        for at in range(0, height * width, chunk):
            here = sample, slice(at, at + chunk)
            f_grad = torch.cat([query_grad[here], projected_grad[sample, :, here[1]].t()], dim=1)
            x_grad[here] = linear(f_grad, f_weight.t())
            if with_f:
                f_weight_grad = weight_grad(rows[here], f_grad, f_weight_grad)
            f_bias_grad += f_grad.sum(0)
            if with_h:
                # The loops have replaced the gradients by the sums.
                sums = totals[sample, :, here[1]].t()
                h_weight_grad = weight_grad(sums, modulator_grad[here], h_weight_grad)
    return [
        x_grad.view(x.shape) if with_x else None,
        f_weight_grad,
        f_bias_grad if with_f_bias else None,
        None if h_weight_grad is None else h_weight_grad * scale,
        modulator_grad.sum(dim=(0, 1)) if with_h_bias else None,
        *_unpack(kernel_grads, sizes, with_kernels),
    ]


_modulate = FusedOperator('modulate', _forward, _backward, _shapes)


def _unpack(
    kernel_grads: Tensor | None, sizes: Sequence[int], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Split the gradients of all kernels (C, T) into those of each (C, 1, k, k)."""
    if kernel_grads is None:
        return [None] * len(sizes)
    parts = kernel_grads.split([size * size for size in sizes], dim=1)
    return [
        part.clone().view(len(part), 1, size, size) if want else None
        for part, size, want in zip(parts, sizes, wanted, strict=True)
    ]


def _run(
    name: str,
    shape: tuple[int, ...],
    sizes: Sequence[int],
    contexts: Sequence[Tensor],
    **tensors: Tensor | None,
) -> None:
    """Run a function of `numba_kernels` on PyTorch's threads; `ARGUMENTS` lists the tensors."""
    kernels = _kernels()
    *_, height, width = shape
    margin = max(sizes) // 2
    threads = _threads(shape[1])
    # A run of pixels may read past the last row by one row of a kernel.
    buffer = (height + 2 * margin) * (width + margin) + kernels.ROW
    # Not torch.zeros: the user may set other default types and devices.
    scratch = tensors['totals'].new_zeros(threads, kernels.BUFFERS, buffer)
    arguments = np.zeros((), kernels.ARGUMENTS)
    numbers = dict(zip(('batch', 'channels', 'height', 'width'), shape, strict=True))
    numbers.update(levels=len(sizes), margin=margin, buffer=buffer)
    numbers.update(taps=sum(size * size for size in sizes))
    addresses = {f: 0 if tensor is None else tensor.data_ptr() for f, tensor in tensors.items()}
    for field, value in {**numbers, **addresses, 'scratch': scratch.data_ptr()}.items():
        arguments[field] = value
    arguments['sizes'][: len(sizes)] = sizes
    arguments['contexts'][: len(contexts)] = [tensor.data_ptr() for tensor in contexts]
    function = getattr(kernels, name).address
    openmp().GOMP_parallel(function, arguments.ctypes.data, threads, 0)


def _threads(dim: int) -> int:
    # Each thread has its own scratch planes; with fewer channels per thread these would take more
    # memory than the features.
    return min(torch.get_num_threads(), max(1, dim // 4))


@functools.cache
def _kernels() -> ModuleType:
    # Imported late: the import compiles the loops unless they are cached on disk.
    from mmfocalnet.ops import numba_kernels

    return numba_kernels
