"""The pytorch path: focal modulation in PyTorch, optimised for the CPU.

Differences from the reference: large depth-wise convolutions and the gradients of their kernels
use PyTorch's fast routes, and GELU is recomputed in backward instead of kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import layers, matrix_products, reference
from mmfocalnet.ops.call import Call
from mmfocalnet.ops.fused_operator import FusedOperator

# From this kernel size on, Fourier transforms are faster than PyTorch's gradient of depth-wise
# kernels, which takes longer for larger kernels, and 20 times longer for many channels.
_FFT_SIZE = 7
# Pixels of the planes that are transformed at a time, which should stay in the cache.
_FFT_CHUNK = 2**20


def unsupported(call: Call) -> str | None:
    """Why this path cannot run a modulation; None if it can."""
    return call.unsupported_by_pytorch()


def modulate(x: Tensor, weights: reference.ModulationWeights) -> Tensor:
    """Compute `reference.modulate`."""
    f_weight, f_bias, _, h_weight, h_bias, _ = weights
    given = [weight for weight in (f_weight, f_bias, h_weight, h_bias) if weight is not None]
    product = F.linear if layers.unsupported(Call.of(x, given)) else layers.linear
    return reference.modulate(x, weights, aggregate_context, product)


def aggregate_context(context: Tensor, gates: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Compute `reference.aggregate_context`."""
    return _aggregate(context, gates, *kernels, constant=0.0)


# Eq. 4 and 5. The contexts before GELU are kept. Internal tensors are (B, C, H, W).


def _aggregate_forward(
    tensors: Sequence[Tensor], scale: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    context, gates, *kernels = tensors
    z = _channels_first(context)
    gate_of = _channels_first(gates).split(1, dim=1)
    total = torch.zeros_like(z)
    before_gelu = []
    for kernel, gate in zip(kernels, gate_of[:-1], strict=True):
        z = _convolve(z, kernel.to(z.dtype))
        if keep:
            before_gelu.append(_channels_last(z))
        z = F.gelu(z)
        total.addcmul_(z, gate)
    mean = z.mean(dim=(2, 3), keepdim=True)
    total.addcmul_(F.gelu(mean), gate_of[-1])
    return _channels_last(total), [mean, *before_gelu] if keep else []


def _aggregate_shapes(tensors: Sequence[Tensor], scale: float, keep: bool) -> list[Sequence[int]]:
    context, _, *kernels = tensors
    mean = (context.shape[0], context.shape[-1], 1, 1)
    return [context.shape, *([mean, *[context.shape] * len(kernels)] if keep else [])]


def _aggregate_backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: float,
) -> list[Tensor | None]:
    context, gates, *kernels = tensors
    mean, *before_gelu = kept
    before_gelu = [_channels_first(z) for z in before_gelu]
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
        want = wanted[2 + level]
        kernel_grads.insert(0, _kernel_grad(z, z_grad, kernels[level]) if want else None)
        z_grad = _convolve(z_grad, kernels[level].to(z_grad.dtype).flip(2, 3))
    with_context, with_gates, *_ = wanted
    return [
        _channels_last(z_grad) if with_context else None,
        torch.stack(gate_grads, dim=-1) if with_gates else None,
        *kernel_grads,
    ]


_aggregate = FusedOperator(
    'aggregate_context', _aggregate_forward, _aggregate_backward, _aggregate_shapes
)


def _channels_first(x: Tensor) -> Tensor:
    # [B, H, W, C] -> [B, C, H, W], contiguous in channels-last memory.
    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    # [B, C, H, W] -> [B, H, W, C], contiguous.
    return x.permute(0, 2, 3, 1).contiguous()


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
