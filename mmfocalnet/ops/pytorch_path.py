"""The pytorch path: focal modulation in PyTorch, optimised for the CPU.

Differences from the reference: large depth-wise convolutions and the gradients of their kernels
use PyTorch's fast routes, and GELU is recomputed in backward instead of kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import fourier, layers, matrix_products, reference
from mmfocalnet.ops.call import Call
from mmfocalnet.ops.fused_operator import FusedOperator

# From this kernel size on, Fourier transforms are faster than PyTorch's gradient of depth-wise
# kernels, which takes longer for larger kernels, and 20 times longer for many channels.
FFT_SIZE = 7
Convolve = Callable[[Tensor, Tensor], Tensor]


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
    convolve: Convolve, tensors: Sequence[Tensor], scale: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    context, gates, *kernels = tensors
    z = _channels_first(context)
    gate_of = _channels_first(gates).split(1, dim=1)
    total = torch.zeros_like(z)
    before_gelu = []
    for kernel, gate in zip(kernels, gate_of[:-1], strict=True):
        z = convolve(z, kernel.to(z.dtype))
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
    convolve: Convolve,
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
        z_grad = convolve(z_grad, kernels[level].to(z_grad.dtype).flip(2, 3))
    with_context, with_gates, *_ = wanted
    return [
        _channels_last(z_grad) if with_context else None,
        torch.stack(gate_grads, dim=-1) if with_gates else None,
        *kernel_grads,
    ]


def fused_operator(name: str, convolve: Convolve) -> FusedOperator:
    """Build Eq. 4 and 5 from a depth-wise convolution of (B, C, H, W) with (C, 1, k, k)."""
    forward, backward = (
        partial(_aggregate_forward, convolve),
        partial(_aggregate_backward, convolve),
    )
    return FusedOperator(name, forward, backward, _aggregate_shapes)


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
    if size < FFT_SIZE:
        small = matrix_products.kernel_grad(x, grad, kernel.to(x.dtype), channels)
        # With the kernel's strides: DistributedDataParallel warns about others.
        return small.flatten().view(kernel.shape).to(kernel.dtype)
    return fourier.kernel_grad(x, grad, size).unsqueeze(1).to(kernel.dtype)


_aggregate = fused_operator('aggregate_context', _convolve)
