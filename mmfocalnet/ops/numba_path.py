"""The operator through numba: on the CPU, in float32, one channel's plane at a time."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfocalnet.ops.case import Case
from mmfocalnet.ops.derivatives import first_derivatives_only, without_base
from mmfocalnet.ops.plain import ModulationWeights
from mmfocalnet.ops.products import linear, linear_of_planes, linear_transposed, weight_grad

# Kernel sizes with loops written out for them.
SIZES = (3, 5, 7, 9, 11, 13, 15, 17, 19)
MAX_LEVELS = 8
# Numbers of the gradient of f that are put together at a time: they should stay in the cache.
_CHUNK = 2**21


def reason_not(case: Case) -> str | None:
    """Say why this path cannot compute a modulation; None where it can."""
    if case.device != 'cpu':
        return f'the features are on {case.device}, not on the CPU'
    if case.tensor != 'Tensor':
        return f'the features are a {case.tensor}, not a plain tensor'
    if case.dtype != torch.float32 or case.autocast:
        return f'it computes in float32, not in {"autocast" if case.autocast else case.dtype}'
    if 0 in case.shape:
        return 'the features are empty'
    if not 1 <= len(case.sizes) <= MAX_LEVELS:
        return f'it takes 1 to {MAX_LEVELS} focal levels, not {len(case.sizes)}'
    for size in case.sizes:
        if size not in SIZES:
            return f'it takes kernels from {SIZES[0]} to {SIZES[-1]}, not of {size}'
    if case.mixed:
        return 'the weights are of another type or device than the features'
    if importlib.util.find_spec('numba') is None:
        return 'numba is not installed (pip install numba)'
    if openmp() is None:
        return 'PyTorch does not use the threads of GNU OpenMP (libgomp) here'
    try:
        _kernels()
    except Exception as error:  # Such as numba beside a numpy that is too new for it.
        return f'numba does not work here ({error})'
    return None


def modulate(x: Tensor, weights: ModulationWeights) -> Tensor:
    """Do what `plain.modulate` does."""
    f_weight, f_bias, kernels, h_weight, h_bias, normalize_modulator = weights
    f_bias = f_weight.new_zeros(len(f_weight)) if f_bias is None else f_bias
    h_bias = h_weight.new_zeros(len(h_weight)) if h_bias is None else h_bias
    scale = 1 / (len(kernels) + 1) if normalize_modulator else 1
    tensors = (x, f_weight, f_bias, h_weight.flatten(1), h_bias, *kernels)
    # Inside the function itself gradients are always off.
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _Modulate.apply(scale, keep, *tensors)


class _Modulate(torch.autograd.Function):
    """Eq. 3 to 6.

    Query and modulator are (B, P, C) with P = H * W pixels, as the neighbouring layers want
    them; context and gates are (B, C + L + 1, P), as the loops do. Both come so from their
    matrix products: nothing is transposed in memory. ``scale`` normalises the modulator;
    ``keep`` says that backward will follow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scale: float,
        keep: bool,
        x: Tensor,
        f_weight: Tensor,
        f_bias: Tensor,
        h_weight: Tensor,
        h_bias: Tensor,
        *kernels: Tensor,
    ) -> Tensor:
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
        ctx.sizes, ctx.scale = sizes, scale
        ctx.save_for_backward(
            x, f_weight, h_weight, query, projected, packed, means, modulator, *contexts
        )
        return without_base((query * modulator).view(x.shape))

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, f_weight, h_weight, query, projected, packed, means, modulator, *contexts = (
            # The loops trust the layout, which hooks on saved tensors may have changed.
            tensor.contiguous()
            for tensor in ctx.saved_tensors
        )
        with_f, _, with_h, _, *with_kernels = ctx.needs_input_grad[3:]
        batch, height, width, dim = x.shape
        rows = x.reshape(batch, height * width, dim)
        grad = grad.reshape(rows.shape)
        query_grad = grad * modulator
        modulator_grad = grad * query
        h_bias_grad = modulator_grad.sum(dim=(0, 1))

        totals = linear_transposed(modulator_grad, ctx.scale * h_weight.t())
        projected_grad = torch.empty_like(projected)
        kernel_grads = torch.empty_like(packed) if any(with_kernels) else None
        gate_grads = rows.new_zeros(_threads(dim), batch, len(ctx.sizes) + 1, height * width)
        _run(
            'backward',
            (batch, dim, height, width),
            ctx.sizes,
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
                f_grad = torch.cat(
                    [query_grad[here], projected_grad[sample, :, here[1]].t()], dim=1
                )
                x_grad[here] = linear(f_grad, f_weight.t())
                if with_f:
                    f_weight_grad = weight_grad(rows[here], f_grad, f_weight_grad)
                f_bias_grad += f_grad.sum(0)
                if with_h:
                    # By now these are the sums themselves.
                    sums = totals[sample, :, here[1]].t()
                    h_weight_grad = weight_grad(sums, modulator_grad[here], h_weight_grad)
        return (
            None,
            None,
            x_grad.view(x.shape),
            f_weight_grad,
            f_bias_grad,
            h_weight_grad * ctx.scale if with_h else None,
            h_bias_grad,
            *_unpack(kernel_grads, ctx.sizes),
        )


def _unpack(kernel_grads: Tensor | None, sizes: Sequence[int]) -> list[Tensor | None]:
    """Split the gradients of all kernels (C, T) into those of each (C, 1, k, k)."""
    if kernel_grads is None:
        return [None] * len(sizes)
    parts = kernel_grads.split([size * size for size in sizes], dim=1)
    return [part.reshape(len(part), 1, size, size) for part, size in zip(parts, sizes, strict=True)]


def _run(
    name: str,
    shape: tuple[int, ...],
    sizes: Sequence[int],
    contexts: Sequence[Tensor],
    **tensors: Tensor | None,
) -> None:
    """Call one of `numba_kernels` on all of PyTorch's threads; its `ARGUMENTS` name the tensors."""
    kernels = _kernels()
    *_, height, width = shape
    margin = max(sizes) // 2
    threads = _threads(shape[1])
    # A run of pixels may look past the last row by a kernel's row.
    buffer = (height + 2 * margin) * (width + margin) + kernels.ROW
    # Not torch.zeros, whose type and device are the user's to set.
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
    # Each thread has planes of its own, which with fewer channels than these would outweigh the
    # features.
    return min(torch.get_num_threads(), max(1, dim // 4))


@functools.cache
def _kernels() -> ModuleType:
    # Imported here, for it compiles its loops unless an earlier process left them on the disk.
    from mmfocalnet.ops import numba_kernels

    return numba_kernels


@functools.cache
def openmp() -> ctypes.CDLL | None:
    """PyTorch's own threads, on which the loops run; None where they are not GNU's.

    Another pool's threads would share the cores with PyTorch's, which keep spinning for
    milliseconds after each operation.
    """
    try:
        # Through PyTorch's own library, for others may have brought another OpenMP.
        library = ctypes.CDLL(torch._C.__file__)
        library.GOMP_parallel.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint] * 2
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library
