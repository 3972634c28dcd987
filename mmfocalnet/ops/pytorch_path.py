"""The pytorch path: the operators in PyTorch, optimised for the CPU.

Differences from the reference: large depth-wise convolutions and the gradients of their kernels
use PyTorch's fast routes, and GELU is recomputed in backward instead of kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import matrix_products, reference
from mmfocalnet.ops.call import Call
from mmfocalnet.ops.derivatives import first_derivatives_only, without_base

# From this kernel size on, Fourier transforms are faster than PyTorch's gradient of depth-wise
# kernels, which takes longer for larger kernels, and 20 times longer for many channels.
_FFT_SIZE = 7
# Pixels of the planes that are transformed at a time, which should stay in the cache.
_FFT_CHUNK = 2**20
# Hidden activations of an MLP that are computed at a time, which should stay in the cache.
_HIDDEN_CHUNK = 2**21
# Larger hidden layers are recomputed in backward. Each allocation beyond 32 MiB gets new pages
# from the system, which takes as long as the matrix product that fills them.
_HIDDEN_KEPT = 2**23


def unsupported(call: Call) -> str | None:
    """Why this path cannot run a modulation; None if it can."""
    if call.device != 'cpu':
        return f'the features are on {call.device}, and this path is faster on the CPU only'
    return call.unusual_input()


def unsupported_linear(call: Call) -> str | None:
    """Why this path cannot run a linear layer or an MLP; None if it can."""
    if call.autocast:
        return 'its matrix products do not follow autocast'
    if not call.dtype.is_floating_point:
        return f'it supports real floating-point numbers, got {call.dtype}'
    if call.mixed:
        return 'the weights differ from the features in dtype or device'
    return unsupported(call)


def modulate(x: Tensor, weights: reference.ModulationWeights) -> Tensor:
    """Compute `reference.modulate`."""
    f_weight, f_bias, _, h_weight, h_bias, _ = weights
    given = [weight for weight in (f_weight, f_bias, h_weight, h_bias) if weight is not None]
    product = F.linear if unsupported_linear(Call.of(x, given)) else linear
    return reference.modulate(x, weights, aggregate_context, product)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `torch.nn.functional.linear`."""
    rows = x.reshape(-1, x.shape[-1])
    return _Linear.apply(rows, weight, bias).view(*x.shape[:-1], len(weight))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return without_base(matrix_products.linear(x, weight, bias))

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with_x, with_weight, with_bias = ctx.needs_input_grad
        return (
            matrix_products.linear(grad, weight.t()) if with_x else None,
            matrix_products.weight_grad(x, grad) if with_weight else None,
            grad.sum(0) if with_bias else None,
        )


def aggregate_context(context: Tensor, gates: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Compute `reference.aggregate_context`."""
    return _AggregateContext.apply(context, gates, *kernels)


class _AggregateContext(torch.autograd.Function):
    """Eq. 4 and 5. Keeps the contexts before GELU; internal tensors are (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, gates: Tensor, *kernels: Tensor) -> Tensor:
        z = _channels_first(context)
        gate_of = _channels_first(gates).split(1, dim=1)
        total = torch.zeros_like(z)
        before_gelu = []
        for kernel, gate in zip(kernels, gate_of[:-1], strict=True):
            z = _convolve(z, kernel.to(z.dtype))
            before_gelu.append(z)
            z = F.gelu(z)
            total.addcmul_(z, gate)
        mean = z.mean(dim=(2, 3), keepdim=True)
        total.addcmul_(F.gelu(mean), gate_of[-1])
        ctx.save_for_backward(context, gates, mean, *kernels, *before_gelu)
        return total.permute(0, 2, 3, 1)

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        context, gates, mean, *rest = ctx.saved_tensors
        kernels, before_gelu = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        grad = _channels_first(grad)
        gate_of = _channels_first(gates).split(1, dim=1)
        gate_grads = [(grad * F.gelu(mean)).sum(1)]
        mean_grad = (grad * gate_of[-1]).sum(dim=(2, 3), keepdim=True)
        mean_grad = torch.ops.aten.gelu_backward(mean_grad, mean) / grad[0, 0].numel()
        z_grad = mean_grad.expand_as(grad)
        z = F.gelu(before_gelu[-1]) if before_gelu else None
        kernel_grads: list[Tensor | None] = []
        for level in reversed(range(len(kernels))):
            gate_grads.insert(0, (grad * z).sum(1))
            z_grad = torch.addcmul(z_grad, grad, gate_of[level])
            z_grad = torch.ops.aten.gelu_backward(z_grad, before_gelu[level])
            z = F.gelu(before_gelu[level - 1]) if level else _channels_first(context)
            wanted = ctx.needs_input_grad[2 + level]
            kernel_grads.insert(0, _kernel_grad(z, z_grad, kernels[level]) if wanted else None)
            z_grad = _convolve(z_grad, kernels[level].to(z_grad.dtype).flip(2, 3))
        return z_grad.permute(0, 2, 3, 1), torch.stack(gate_grads, dim=-1), *kernel_grads


def _channels_first(x: Tensor) -> Tensor:
    # [B, H, W, C] -> [B, C, H, W], contiguous in channels-last memory.
    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    # A convolution equals the transposed convolution with the flipped kernel, and oneDNN's
    # depth-wise transposed convolution is up to three times faster at 13x13.
    size = kernel.shape[-1]
    return F.conv_transpose2d(x, kernel.flip(2, 3), padding=size // 2, groups=x.shape[1])


def _kernel_grad(x: Tensor, grad: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of a depth-wise kernel: (C, 1, k, k) from (B, C, H, W)."""
    channels, _, size, _ = kernel.shape
    height, width = x.shape[2:]
    if size < _FFT_SIZE:
        return matrix_products.kernel_grad(x, grad, kernel.to(x.dtype), channels).to(kernel.dtype)
    chunk = max(1, _FFT_CHUNK // (len(x) * height * width))
    parts = [
        _correlate(x[:, i : i + chunk], grad[:, i : i + chunk], size)
        for i in range(0, channels, chunk)
    ]
    return torch.cat(parts).unsqueeze(1).to(kernel.dtype)


def _correlate(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Correlate planes at all lags up to k // 2: (C, k, k) from (B, C, H, W)."""
    reach = size // 2
    shape = [_fast_length(length + reach) for length in x.shape[2:]]
    # There is no Fourier transform of bfloat16.
    dtype = torch.promote_types(x.dtype, torch.float32)
    spectrum = torch.fft.rfft2(x.to(dtype).contiguous(), s=shape)
    spectrum *= torch.fft.rfft2(grad.to(dtype).contiguous(), s=shape).conj()
    planes = torch.fft.irfft2(spectrum.sum(0), s=shape)
    lags = torch.arange(-reach, reach + 1, device=x.device)
    return planes[:, lags % shape[0]][:, :, lags % shape[1]]


def _fast_length(length: int) -> int:
    """Smallest number of at least ``length`` whose prime factors are 2, 3 and 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """Compute `reference.feed_forward`."""
    tensors = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    hidden = x.shape[:-1].numel() * len(fc1_weight)
    keep = torch.is_grad_enabled() and hidden <= _HIDDEN_KEPT
    return _FeedForward.apply(keep, *tensors)


class _FeedForward(torch.autograd.Function):
    """An MLP computed in chunks of rows, so that the wide hidden layer stays in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,
        x: Tensor,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(len(rows), len(fc2_weight))
        kept = []
        for part, out_part in zip(*_in_chunks(fc1_weight, rows, out), strict=True):
            hidden = matrix_products.linear(part, fc1_weight, fc1_bias)
            if keep:
                kept.append(hidden)
            hidden = F.gelu(hidden) if keep else torch.ops.aten.gelu_(hidden)
            out_part.copy_(matrix_products.linear(hidden, fc2_weight, fc2_bias))
        ctx.save_for_backward(x, fc1_weight, fc1_bias, fc2_weight, *kept)
        return without_base(out.view(*x.shape[:-1], -1))

    @staticmethod
    @first_derivatives_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, fc1_weight, fc1_bias, fc2_weight, *kept = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        rows_grad = torch.empty_like(rows)
        *_, with_fc1, with_fc1_bias, with_fc2, with_fc2_bias = ctx.needs_input_grad
        fc1_grad = fc2_grad = None
        bias_grad = fc1_weight.new_zeros(len(fc1_weight))
        chunks = zip(*_in_chunks(fc1_weight, rows, grad, rows_grad), strict=True)
        for i, (part, part_grad, out) in enumerate(chunks):
            hidden = kept[i] if kept else matrix_products.linear(part, fc1_weight, fc1_bias)
            activated = F.gelu(hidden)
            if with_fc2:
                fc2_grad = matrix_products.weight_grad(activated, part_grad, fc2_grad)
            hidden_grad = matrix_products.linear(part_grad, fc2_weight.t())
            torch.ops.aten.gelu_backward(hidden_grad, hidden, grad_input=hidden_grad)
            if with_fc1:
                fc1_grad = matrix_products.weight_grad(part, hidden_grad, fc1_grad)
            bias_grad += hidden_grad.sum(0)
            out.copy_(matrix_products.linear(hidden_grad, fc1_weight.t()))
        return (
            None,
            rows_grad.view(x.shape),
            fc1_grad,
            bias_grad if with_fc1_bias else None,
            fc2_grad,
            grad.sum(0) if with_fc2_bias else None,
        )


def _in_chunks(fc1_weight: Tensor, *rows: Tensor) -> list[Sequence[Tensor]]:
    size = max(256, _HIDDEN_CHUNK // len(fc1_weight))
    return [tensor.split(size) for tensor in rows]
