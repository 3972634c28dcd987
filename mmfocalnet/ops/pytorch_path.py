"""The pytorch path: the operators in PyTorch, optimised for the CPU.

Differences from the reference: large depth-wise convolutions and the gradients of their kernels
use PyTorch's fast routes, and GELU is recomputed in backward instead of kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import matrix_products, reference
from mmfocalnet.ops.call import Call
from mmfocalnet.ops.fused_operator import FusedOperator

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
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return _linear(x, weight, bias, constant=0.0)


def _linear_forward(
    tensors: Sequence[Tensor], scale: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    x, weight, bias = tensors
    out = matrix_products.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return out.view(*x.shape[:-1], len(weight)), []


def _linear_shapes(tensors: Sequence[Tensor], scale: float, keep: bool) -> list[Sequence[int]]:
    x, weight, _ = tensors
    return [(*x.shape[:-1], weight.shape[0])]


def _linear_backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: float,
) -> list[Tensor | None]:
    x, weight, _ = tensors
    with_x, with_weight, with_bias = wanted
    rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return [
        matrix_products.linear(grad, weight.t()).view(x.shape) if with_x else None,
        matrix_products.weight_grad(rows, grad) if with_weight else None,
        grad.sum(0) if with_bias else None,
    ]


_linear = FusedOperator('linear', _linear_forward, _linear_backward, _linear_shapes)


def unsupported_layer_norm(call: Call) -> str | None:
    """Why this path cannot run a LayerNorm; None if it can."""
    if call.dtype != torch.float32:
        return f'it computes in float32, not in {call.dtype}'
    return unsupported_linear(call)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute `torch.nn.functional.layer_norm` over the last dimension."""
    return _layer_norm(x, weight, bias, constant=eps)


def _layer_norm_forward(
    tensors: Sequence[Tensor], eps: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    x, weight, bias = tensors
    out, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
    return out, [mean.flatten(), rstd.flatten()] if keep else []


def _layer_norm_shapes(tensors: Sequence[Tensor], eps: float, keep: bool) -> list[Sequence[int]]:
    x = tensors[0]
    rows = (x.shape[:-1].numel(),)
    return [x.shape, *([rows, rows] if keep else [])]


def _layer_norm_backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    eps: float,
) -> list[Tensor | None]:
    x, weight, bias = tensors
    mean, rstd = (statistics.view(*x.shape[:-1], 1) for statistics in kept)
    return torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x.contiguous(), weight.shape, mean, rstd, weight, bias, list(wanted)
    )


_layer_norm = FusedOperator(
    'layer_norm', _layer_norm_forward, _layer_norm_backward, _layer_norm_shapes
)


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


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """Compute `reference.feed_forward`."""
    fc1_bias = fc1_weight.new_zeros(len(fc1_weight)) if fc1_bias is None else fc1_bias
    fc2_bias = fc2_weight.new_zeros(len(fc2_weight)) if fc2_bias is None else fc2_bias
    return _feed_forward(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, constant=0.0)


# An MLP computed in chunks of rows, so that the wide hidden layer stays in the cache.


def _feed_forward_forward(
    tensors: Sequence[Tensor], scale: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias = tensors
    rows = x.reshape(-1, x.shape[-1])
    if keep and _is_hidden_kept(x, fc1_weight):
        hidden = matrix_products.linear(rows, fc1_weight, fc1_bias)
        out = matrix_products.linear(F.gelu(hidden), fc2_weight, fc2_bias)
        return out.view(*x.shape[:-1], -1), [hidden]
    out = rows.new_empty(len(rows), len(fc2_weight))
    for part, out_part in zip(*_in_chunks(fc1_weight, rows, out), strict=True):
        hidden = torch.ops.aten.gelu_(matrix_products.linear(part, fc1_weight, fc1_bias))
        out_part.copy_(matrix_products.linear(hidden, fc2_weight, fc2_bias))
    return out.view(*x.shape[:-1], len(fc2_weight)), []


def _feed_forward_shapes(
    tensors: Sequence[Tensor], scale: float, keep: bool
) -> list[Sequence[int]]:
    x, fc1_weight, _, fc2_weight, _ = tensors
    out = (*x.shape[:-1], fc2_weight.shape[0])
    if keep and _is_hidden_kept(x, fc1_weight):
        return [out, (x.shape[:-1].numel(), fc1_weight.shape[0])]
    return [out]


def _is_hidden_kept(x: Tensor, fc1_weight: Tensor) -> bool:
    return x.shape[:-1].numel() * fc1_weight.shape[0] <= _HIDDEN_KEPT


def _feed_forward_backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: float,
) -> list[Tensor | None]:
    x, fc1_weight, fc1_bias, fc2_weight, _ = tensors
    rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    rows_grad = torch.empty_like(rows)
    with_x, with_fc1, with_fc1_bias, with_fc2, with_fc2_bias = wanted
    fc1_grad = fc2_grad = None
    bias_grad = fc1_weight.new_zeros(len(fc1_weight))
    all_hidden = kept[0] if kept else fc1_weight.new_empty(len(rows), 0)
    chunks = zip(*_in_chunks(fc1_weight, rows, grad, rows_grad, all_hidden), strict=True)
    for part, part_grad, out, hidden in chunks:
        if not kept:
            hidden = matrix_products.linear(part, fc1_weight, fc1_bias)
        activated = F.gelu(hidden)
        if with_fc2:
            fc2_grad = matrix_products.weight_grad(activated, part_grad, fc2_grad)
        hidden_grad = matrix_products.linear(part_grad, fc2_weight.t())
        torch.ops.aten.gelu_backward(hidden_grad, hidden, grad_input=hidden_grad)
        if with_fc1:
            fc1_grad = matrix_products.weight_grad(part, hidden_grad, fc1_grad)
        bias_grad += hidden_grad.sum(0)
        out.copy_(matrix_products.linear(hidden_grad, fc1_weight.t()))
    return [
        rows_grad.view(x.shape) if with_x else None,
        fc1_grad,
        bias_grad if with_fc1_bias else None,
        fc2_grad,
        grad.sum(0) if with_fc2_bias else None,
    ]


_feed_forward = FusedOperator(
    'feed_forward', _feed_forward_forward, _feed_forward_backward, _feed_forward_shapes
)


def _in_chunks(fc1_weight: Tensor, *rows: Tensor) -> list[Sequence[Tensor]]:
    size = max(256, _HIDDEN_CHUNK // len(fc1_weight))
    return [tensor.split(size) for tensor in rows]
