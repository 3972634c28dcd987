"""Layers in PyTorch, optimised for the CPU: linear layer, LayerNorm, MLP, patch embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import matrix_products
from mmfocalnet.ops.call import Call
from mmfocalnet.ops.fused_operator import FusedOperator

# Hidden activations of an MLP that are computed at a time, which should stay in the cache.
_HIDDEN_CHUNK = 2**21
# Larger hidden layers are recomputed in backward. Each allocation beyond 32 MiB gets new pages
# from the system, which takes as long as the matrix product that fills them.
_HIDDEN_KEPT = 2**23


def unsupported(call: Call) -> str | None:
    """Why this path cannot run a layer; None if it can."""
    if call.autocast:
        return 'its matrix products do not follow autocast'
    if not call.dtype.is_floating_point:
        return f'it supports real floating-point numbers, got {call.dtype}'
    if call.mixed:
        return 'the weights differ from the features in dtype or device'
    return call.unsupported_by_pytorch()


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


def _count_rows(x: Tensor) -> int:
    # Not `x.shape[:-1].numel()`, which makes dynamic shapes of compilers static.
    return math.prod(x.shape[:-1])


_linear = FusedOperator('linear', _linear_forward, _linear_backward, _linear_shapes)


def unsupported_layer_norm(call: Call) -> str | None:
    """Why this path cannot run a LayerNorm; None if it can."""
    if call.dtype != torch.float32:
        return f'it computes in float32, not in {call.dtype}'
    return unsupported(call)


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
    rows = (_count_rows(x),)
    return [x.shape, *([rows, rows] if keep else [])]


def _layer_norm_backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    eps: float,
) -> list[Tensor | None]:
    x, weight, bias = tensors
    mean, rstd = (tensor.contiguous().view(*x.shape[:-1], 1) for tensor in kept)
    return torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x.contiguous(), weight.shape, mean, rstd, weight, bias, list(wanted)
    )


_layer_norm = FusedOperator(
    'layer_norm', _layer_norm_forward, _layer_norm_backward, _layer_norm_shapes
)


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
        return [out, (_count_rows(x), fc1_weight.shape[0])]
    return [out]


def _is_hidden_kept(x: Tensor, fc1_weight: Tensor) -> bool:
    return _count_rows(x) * fc1_weight.shape[0] <= _HIDDEN_KEPT


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


def embed_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `reference.embed_patches`."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return _embed_patches(x.permute(0, 2, 3, 1), weight, bias, constant=0.0)


# A convolution of disjoint patches is a linear layer of the patches. Its gradients are matrix
# products, which take half the time of PyTorch's strided convolution.


def _embed_patches_forward(
    tensors: Sequence[Tensor], scale: float, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    x, weight, bias = tensors
    out = matrix_products.linear(_patches(x, weight), _as_matrix(weight), bias)
    return out.view(_embed_patches_shapes(tensors, scale, keep)[0]), []


def _embed_patches_shapes(
    tensors: Sequence[Tensor], scale: float, keep: bool
) -> list[Sequence[int]]:
    x, weight, _ = tensors
    batch, height, width, _ = x.shape
    size = weight.shape[-1]
    return [(batch, height // size, width // size, weight.shape[0])]


def _embed_patches_backward(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: float,
) -> list[Tensor | None]:
    x, weight, _ = tensors
    with_x, with_weight, with_bias = wanted
    batch, height, width, channels = x.shape
    size = weight.shape[-1]
    rows = grad.reshape(-1, len(weight))
    x_grad = weight_grad = None
    if with_x:
        x_grad = matrix_products.linear(rows, _as_matrix(weight).t())
        x_grad = x_grad.view(batch, height // size, width // size, size, size, channels)
        x_grad = x_grad.transpose(2, 3).reshape(x.shape)
    if with_weight:
        weight_grad = matrix_products.weight_grad(_patches(x, weight), rows)
        weight_grad = weight_grad.view(-1, size, size, channels).permute(0, 3, 1, 2).contiguous()
    return [x_grad, weight_grad, rows.sum(0) if with_bias else None]


_embed_patches = FusedOperator(
    'embed_patches', _embed_patches_forward, _embed_patches_backward, _embed_patches_shapes
)


def _patches(x: Tensor, weight: Tensor) -> Tensor:
    """Patches of S x S pixels as rows (B * H/S * W/S, S * S * C) from (B, H, W, C)."""
    batch, height, width, channels = x.shape
    size = weight.shape[-1]
    grid = x.reshape(batch, height // size, size, width // size, size, channels)
    return grid.transpose(2, 3).reshape(-1, size * size * channels)


def _as_matrix(weight: Tensor) -> Tensor:
    # [D, C, S, S] -> [D, S * S * C]
    return weight.permute(0, 2, 3, 1).flatten(1)
