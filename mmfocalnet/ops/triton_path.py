"""The Triton path: Eq. 4 and 5 on NVIDIA GPUs, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import reference
from mmfocalnet.ops.call import Call
from mmfocalnet.ops.fused_operator import FusedOperator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Pixels of a tile in kernels that do not convolve.
PIXELS = 32
MIN_CHANNELS, MAX_CHANNELS = 16, 64
# Groups of four pixels over which one program sums a kernel's gradient: for large features, the
# partial sums of all programs together are smaller than the features.
CHUNK = 128
# Taps of a row of a kernel whose gradients one program computes, at most.
MAX_TAPS = 8
# Programs load vectors from rows that start at multiples of this number of values.
ALIGN = 16
# Groups times channels of a tile in kernels that convolve, by the warps that compute it. A thread
# has 8 of these elements and 32 sums in registers, with 8 warps 4 elements and 16 sums. The first
# entry is used where nothing is measured.
TILES = {4: 1024, 2: 512, 8: 1024}
WARPS = next(iter(TILES))


def unsupported(call: Call) -> str | None:
    """Why this path cannot run a call; None if it can."""
    if call.device != 'cuda' and not _is_interpreted():
        return f'the features are on {call.device}, not on CUDA'
    if call.dtype not in DTYPES:
        return f'it computes in float32, bfloat16 or float16, not in {call.dtype}'
    if reason := call.unusual_input():
        return reason
    if importlib.util.find_spec('triton') is None:
        return 'triton is not installed (pip install triton)'
    try:
        _try_out(call.device, call.dtype)
    except Exception as error:  # For example an old GPU, or no C compiler for Triton's launcher.
        return f'triton does not work here ({error})'
    return None


def modulate(x: Tensor, weights: reference.ModulationWeights, warps: int = WARPS) -> Tensor:
    """Compute `reference.modulate` with programs of 4, 2 or 8 warps."""
    dim, levels = len(weights.h_weight), len(weights.kernels)
    projected = _padded_linear(x, weights.f_weight, weights.f_bias)
    sizes = (dim, dim, levels + 1, projected.shape[-1] - 2 * dim - levels - 1)
    query, context, gates, _ = projected.split(sizes, dim=-1)
    total = aggregate(context, gates, weights.kernels, weights.normalize_modulator, warps)
    return query * F.linear(total, weights.h_weight.flatten(1), weights.h_bias)


def modulate_2_warps(x: Tensor, weights: reference.ModulationWeights) -> Tensor:
    """Compute `modulate` with two warps per program."""
    return modulate(x, weights, warps=2)


def modulate_8_warps(x: Tensor, weights: reference.ModulationWeights) -> Tensor:
    """Compute `modulate` with eight warps per program."""
    return modulate(x, weights, warps=8)


def _padded_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a linear layer whose output width is rounded up to a multiple of `ALIGN`."""
    padding = -len(weight) % ALIGN
    bias = None if bias is None else F.pad(bias, (0, padding))
    return F.linear(x, F.pad(weight, (0, 0, 0, padding)), bias)


def aggregate(
    context: Tensor,
    gates: Tensor,
    kernels: Sequence[Tensor],
    normalize_modulator: bool = False,
    warps: int = WARPS,
) -> Tensor:
    """Compute `reference.aggregate_context` (Eq. 4 and 5), optionally divided by L + 1.

    Differentiable once.

    Args:
        context: Projected features z^0 (B, H, W, C) in float32, bfloat16 or float16. Slices of a
            wider last dimension are read in place.
        gates: Gates of the focal levels, then of the global context (B, H, W, L + 1).
        kernels: Kernels (C, 1, k, k) of the L levels, k odd, of any floating type.
        normalize_modulator: Divide the sum by L + 1. Defaults to False.
        warps: Warps per program, one of `TILES`. Defaults to the first one.

    Returns:
        The gated sum (B, H, W, C), contiguous, of the context's type.
    """
    scale = 1 / (len(kernels) + 1) if normalize_modulator else 1.0
    return _aggregate[warps](context, gates, *kernels, constant=scale)


@functools.cache
def _try_out(device: str, dtype: torch.dtype) -> None:
    """Compile and run all kernels once, on one pixel."""
    with torch.enable_grad():
        context = torch.zeros(1, 1, 1, 1, device=device, dtype=dtype, requires_grad=True)
        kernel = torch.zeros(1, 1, 1, 1, device=device, requires_grad=True)
        gates = context.expand(-1, -1, -1, 3)
        aggregate(context, gates, [kernel, kernel]).sum().backward()


@functools.cache
def _kernels() -> ModuleType:
    from mmfocalnet.ops import triton_kernels

    return triton_kernels


def _kernel(name: str) -> Any:
    """Return a kernel of `triton_kernels` in the form that compilers can trace."""
    kernel = getattr(_kernels(), name)
    # PyTorch before 2.6 cannot trace kernels, and those of the interpreter cannot be traced.
    traceable = hasattr(torch.library, 'wrap_triton') and not _is_interpreted()
    return torch.library.wrap_triton(kernel) if traceable else kernel


def _is_interpreted() -> bool:
    # Triton reads this variable too: its interpreter runs kernels on the CPU, for tests.
    return os.environ.get('TRITON_INTERPRET') == '1'


def _forward(
    warps: int, tensors: Sequence[Tensor], scale: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    context, gates, *kernels = tensors
    all_pre, mean = _levels(context, kernels, warps)
    total = _combine(gates, scale, all_pre, mean)
    return total, [all_pre, mean] if keep else []


def _backward(
    warps: int,
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: float,
) -> list[Tensor | None]:
    context, gates, *kernels = tensors
    all_pre, mean = kept
    total_grad = grad.contiguous()
    gate_grads, mean_grad = _gates_backward(total_grad, gates, scale, all_pre, mean)
    if not kernels:
        # Without levels the context is z^L; it reaches the sum only through its mean.
        context_grad = mean_grad[:, None, None].to(context.dtype).expand(context.shape)
        return _only([context_grad, gate_grads], wanted)
    pre_grad = _last_level_backward(total_grad, gates, scale, all_pre[-1], mean_grad)
    kernel_grads: list[Tensor | None] = [None] * len(kernels)
    for level in reversed(range(len(kernels))):
        if level:
            gate, pre = gates[..., level - 1 :], all_pre[level - 1]
            inputs = (pre_grad, kernels[level], total_grad, gate, scale, pre)
            grad_below, below = _level_backward(*inputs, warps)
        else:
            grad_below, below = _context_backward(pre_grad, kernels[0], warps), context
        if wanted[2 + level]:
            kernel_grads[level] = _kernel_backward(below, pre_grad, kernels[level], warps)
        pre_grad = grad_below
    return _only([pre_grad, gate_grads, *kernel_grads], wanted)


def _only(grads: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]


def _operator(warps: int) -> FusedOperator:
    forward, backward = partial(_forward, warps), partial(_backward, warps)
    return FusedOperator(f'aggregate_context_triton_{warps}', forward, backward, None)


_aggregate = {warps: _operator(warps) for warps in TILES}


class _Tiling:
    """Division of features (B, H, W, C) among the programs of a kernel.

    Args:
        shape: Shape of the features.
        warps: Warps per program of a kernel that convolves. None for the other kernels.
    """

    def __init__(self, shape: torch.Size, warps: int | None = None) -> None:
        self.batch, self.height, self.width, self.channels = shape
        self.pixels = self.height * self.width
        self.rows = self.batch * self.pixels
        block = _channel_block(self.channels)
        self.blocks = -(-self.channels // block)
        self.padding = self.blocks * block - self.channels
        self.groups = self.height * -(-self.width // 4)
        # The last arguments of a kernel.
        self.meta = {'ALIGN': math.gcd(self.channels, ALIGN), 'CHANNELS': block}
        if warps:
            self.image = (self.height, self.width, self.channels)
            units, size = self.groups, TILES[warps] // block
            self.meta |= {'GROUPS': size}
            if warps != WARPS:  # Triton's default, which compilers trace as it is.
                self.meta['num_warps'] = warps
        else:
            self.image = (self.pixels, self.channels)
            units, size = self.pixels, PIXELS
            self.meta |= {'PIXELS': size}
        self.tiles = self.batch * -(-units // size)
        self.grid = (self.tiles, self.blocks)

    def aligned(self, stride: int) -> dict[str, int]:
        """Return the last arguments of a kernel that reads rows with this stride."""
        return self.meta | {'ALIGN': math.gcd(self.meta['ALIGN'], stride)}


def _channel_block(channels: int) -> int:
    """Power of two that covers the channels with the fewest idle threads; the largest of those."""
    sizes = [MAX_CHANNELS, MAX_CHANNELS // 2, MIN_CHANNELS]
    return min(sizes, key=lambda size: -(-channels // size) * size)


def _levels(context: Tensor, kernels: Sequence[Tensor], warps: int) -> tuple[Tensor, Tensor]:
    """Return pre^l of all levels (L, B, H, W, C) and the mean of z^L (B, C) in float32."""
    tiling = _Tiling(context.shape, warps)
    all_pre = _empty((len(kernels), *context.shape), context)
    if not kernels:
        return all_pre, context.mean((1, 2), dtype=torch.float32)
    sums = _empty((tiling.tiles, tiling.channels), context, torch.float32)
    rows = _rows(context)
    for level, (pre, kernel) in enumerate(zip(all_pre, kernels, strict=True)):
        last = level == len(kernels) - 1
        post = None if last else torch.empty_like(pre)
        tensors = (rows, rows.stride(0), _taps(kernel, tiling), pre, post, sums if last else None)
        meta = tiling.aligned(rows.stride(0))
        _kernel('level_forward')[tiling.grid](*tensors, *tiling.image, K=kernel.shape[-1], **meta)
        rows = rows if last else _rows(post)
    sums = sums.view(tiling.batch, -1, tiling.channels).sum(1)
    return all_pre, sums / tiling.pixels


def _combine(gates: Tensor, scale: float, all_pre: Tensor, mean: Tensor) -> Tensor:
    """Return the gated sum (B, H, W, C)."""
    tiling = _Tiling(all_pre.shape[1:])
    gate_rows = _rows(gates)
    total = _empty(all_pre.shape[1:], all_pre)
    tensors = (all_pre, total.numel(), gate_rows, gate_rows.stride(0), F.gelu(mean), total)
    _kernel('combine')[tiling.grid](
        *tensors, scale, *tiling.image, LEVELS=len(all_pre), **tiling.meta
    )
    return total


def _gates_backward(
    total_grad: Tensor, gates: Tensor, scale: float, all_pre: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the gates and of the sum over the pixels of z^L (B, C)."""
    tiling = _Tiling(total_grad.shape)
    gate_rows = _rows(gates)
    gate_grads = _empty((tiling.blocks, *gates.shape), gates, torch.float32)
    global_grads = _empty((tiling.tiles, tiling.channels), gates, torch.float32)
    inputs = (total_grad, all_pre, total_grad.numel(), gate_rows, gate_rows.stride(0), F.gelu(mean))
    outputs = (gate_grads, global_grads)
    _kernel('gates_backward')[tiling.grid](
        *inputs, *outputs, scale, *tiling.image, tiling.rows, LEVELS=len(all_pre), **tiling.meta
    )
    global_grads = global_grads.view(tiling.batch, -1, tiling.channels).sum(1)
    mean_grad = torch.ops.aten.gelu_backward(global_grads, mean) / tiling.pixels
    return gate_grads.sum(0).to(gates.dtype), mean_grad


def _last_level_backward(
    total_grad: Tensor, gates: Tensor, scale: float, pre: Tensor, mean_grad: Tensor
) -> Tensor:
    """Return the gradient of pre^L."""
    tiling = _Tiling(pre.shape)
    gate = _rows(gates[..., -2:])
    pre_grad = torch.empty_like(pre)
    tensors = (total_grad, gate, gate.stride(0), mean_grad, pre, pre_grad)
    _kernel('last_level_backward')[tiling.grid](*tensors, scale, *tiling.image, **tiling.meta)
    return pre_grad


def _level_backward(
    pre_grad: Tensor,
    kernel: Tensor,
    total_grad: Tensor,
    gates: Tensor,
    scale: float,
    pre: Tensor,
    warps: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of pre^l, whose gate is the first of ``gates``, and recomputed z^l."""
    tiling = _Tiling(pre.shape, warps)
    gate = _rows(gates)
    grad_below, post = torch.empty_like(pre), torch.empty_like(pre)
    flipped = _taps(kernel, tiling).flip(0)
    tensors = (pre_grad, flipped, grad_below, total_grad, gate, gate.stride(0), pre, post)
    _kernel('level_backward')[tiling.grid](
        *tensors, scale, *tiling.image, K=kernel.shape[-1], **tiling.meta
    )
    return grad_below, post


def _context_backward(pre_grad: Tensor, kernel: Tensor, warps: int) -> Tensor:
    """Return the gradient of the context, which has no gate."""
    tiling = _Tiling(pre_grad.shape, warps)
    context_grad = torch.empty_like(pre_grad)
    tensors = (pre_grad, _taps(kernel, tiling).flip(0), context_grad)
    _kernel('context_backward')[tiling.grid](
        *tensors, *tiling.image, K=kernel.shape[-1], **tiling.meta
    )
    return context_grad


def _kernel_backward(below: Tensor, pre_grad: Tensor, kernel: Tensor, warps: int) -> Tensor:
    """Return the gradient of the kernel that maps ``below`` (z^{l-1}) to pre^l."""
    tiling = _Tiling(pre_grad.shape, warps)
    rows = _rows(below)
    size = kernel.shape[-1]
    chunks = tiling.batch * -(-tiling.groups // CHUNK)
    parts = _empty((chunks, size * size, tiling.channels), pre_grad, torch.float32)
    tensors = (rows, rows.stride(0), pre_grad, parts)
    taps = -(-size // -(-size // MAX_TAPS))
    meta = {'K': size, 'TAPS': taps, 'CHUNK': CHUNK, **tiling.aligned(rows.stride(0))}
    grid = (chunks, tiling.blocks, size * -(-size // taps))
    _kernel('taps_backward')[grid](*tensors, *tiling.image, **meta)
    return parts.sum(0).t().reshape(kernel.shape).to(kernel.dtype)


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _rows(features: Tensor) -> Tensor:
    """View features (B, H, W, C) as rows (B * H * W, C); copy only if the rows are not dense."""
    rows = features.flatten(0, 2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _taps(kernel: Tensor, tiling: _Tiling) -> Tensor:
    """Reorder a kernel (C, 1, k, k) as the features are ordered: (k * k, C + padding) in float32.

    Programs load complete blocks of channels.
    """
    return F.pad(kernel.flatten(1).t().float(), (0, tiling.padding)).contiguous()
