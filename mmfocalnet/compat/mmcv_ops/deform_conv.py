"""Deformable convolution, plain (v1) and modulated (v2), with the signatures of `mmcv._ext`.

The output at pixel p, for the positions k of the kernel, their offsets d and masks m, is

    y(p) = sum_k weight_k * m_k(p) * x(stride * p - padding + dilation * k + d_k(p)) + bias,

where x between pixels is bilinear, with zeros outside the map. v1 has neither masks nor bias. Each
of `deform_groups` parts of the input channels has separate offsets and masks.

The results equal the compiled op's; half precision computes positions and sums in float32. At an
integer position, where the derivative with respect to the offset jumps, it is the one from the
right, and at -1 it is 0, as in the compiled op.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import add_gradients, compute_dtype, log_ops_provider

_Convolution: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# Names of the vertical and horizontal stride, padding and dilation.
_V1 = (('dH', 'dW'), ('padH', 'padW'), ('dilationH', 'dilationW'))
_V2 = (('stride_h', 'stride_w'), ('pad_h', 'pad_w'), ('dilation_h', 'dilation_w'))


def _convolution(names: tuple[tuple[str, str], ...], settings: dict[str, int]) -> _Convolution:
    """`_convolve` with these settings."""
    stride, padding, dilation = ((settings[y], settings[x]) for y, x in names)
    return functools.partial(
        _convolve,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=settings['group'],
        deform_groups=settings['deformable_group'],
    )


@torch.no_grad()
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """Convolve with an offset for each position of the kernel.

    Args:
        input: Features (B, C, H, W) of any float dtype.
        weight: Shape (D, C / group, kH, kW).
        offset: Offsets (y, x) in pixels, shape (B, deformable_group * kH * kW * 2, h, w).
        output: Filled with the results (B, D, h, w).
        columns: Not used: a buffer of the compiled op.
        ones: Not used, likewise.
        settings: dH and dW (stride), padH, padW, dilationH, dilationW, group, deformable_group.
            kH, kW and im2col_step are not used.

    Raises:
        ValueError: If offsets and output differ in size.
    """
    if offset.shape[2:] != output.shape[2:]:
        raise ValueError(
            f'deform_conv: the offsets are of size {tuple(offset.shape[2:])}, expected '
            f'{tuple(output.shape[2:])}, the size of the output'
        )
    _forward(_convolution(_V1, settings), (input, offset, _no_mask(offset), weight), output)


@torch.no_grad()
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Add the gradient of the input to `grad_input`; fill `grad_offset`.

    The other arguments are those of `deform_conv_forward`.
    """
    inputs = (input, offset, _no_mask(offset), weight)
    grads = (grad_input, grad_offset.zero_(), None, None)
    _backward(_convolution(_V1, settings), inputs, grads, grad_output)


@torch.no_grad()
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """Add `scale` times the gradient of the weight to `grad_weight`.

    The other arguments are those of `deform_conv_forward`.
    """
    # The gradient does not depend on the weight: any tensor of its shape will do.
    inputs = (input, offset, _no_mask(offset), grad_weight)
    grads = (None, None, None, grad_weight)
    _backward(_convolution(_V1, settings), inputs, grads, grad_output * scale)


@torch.no_grad()
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Convolve with an offset and a factor for each position of the kernel.

    Args:
        input: Features (B, C, H, W) of any float dtype.
        weight: Shape (D, C / group, kH, kW).
        bias: Shape (D,).
        ones: Not used: a buffer of the compiled op.
        offset: Offsets (y, x) in pixels, shape (B, deformable_group * kH * kW * 2, h, w). If h and
            w are larger, the first elements of each image are used, in the order of memory.
        mask: Factors, shape (B, deformable_group * kH * kW, h, w), likewise.
        output: Filled with the results (B, D, h, w).
        columns: Not used, like `ones`.
        with_bias: Add the bias.
        settings: stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,
            deformable_group. kernel_h and kernel_w are not used.
    """
    _forward(_convolution(_V2, settings), (input, offset, mask, weight), output)
    if with_bias:
        output.add_(bias[:, None, None])


@torch.no_grad()
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Add to `grad_input`, `grad_weight` and `grad_bias`; fill `grad_offset` and `grad_mask`.

    The other arguments are those of `modulated_deform_conv_forward`.
    """
    inputs = (input, offset, mask, weight)
    grads = (grad_input, grad_offset.zero_(), grad_mask.zero_(), grad_weight)
    _backward(_convolution(_V2, settings), inputs, grads, grad_output)
    if with_bias:
        grad_bias.add_(grad_output.sum((0, 2, 3)))


def _no_mask(offset: Tensor) -> Tensor:
    """The mask of v1: ones."""
    batch, channels, height, width = offset.shape
    return offset.new_ones(()).expand(batch, channels // 2, height, width)


# Both take one image at a time: the samples are kH * kW times as large as the input.


def _forward(
    convolve: _Convolution, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor
) -> None:
    log_ops_provider()
    *batch, weight = (tensor.to(compute_dtype(output)) for tensor in inputs)
    with torch.autocast(output.device.type, enabled=False):
        for image, target in enumerate(output):
            target.copy_(convolve(*(tensor[image] for tensor in batch), weight))


def _backward(
    convolve: _Convolution,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    grad_output: Tensor,
) -> None:
    """Add to `grads`, which are None where not needed."""
    *batch_grads, grad_weight = grads
    # Not in half precision, as it sums over the images.
    weight_sum = None
    if grad_weight is not None:
        weight_sum = torch.zeros_like(grad_weight, dtype=compute_dtype(grad_weight))
    for image, grad in enumerate(grad_output):
        add_gradients(
            convolve,
            [*(tensor[image] for tensor in inputs[:3]), inputs[3]],
            [*(None if tensor is None else tensor[image] for tensor in batch_grads), weight_sum],
            grad,
        )
    if grad_weight is not None:
        grad_weight.add_(weight_sum)


def _convolve(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Convolve one image, without bias: (C, H, W) -> (D, h, w)."""
    height, width = x.shape[1:]
    kernel = weight.shape[2:]
    axes = zip((height, width), kernel, stride, padding, dilation, strict=True)
    grid_y, grid_x = (  # (kH, h), (kW, w)
        torch.arange(0, n + 2 * p - d * (k - 1), s, device=x.device)
        + (torch.arange(k, device=x.device) * d - p)[:, None]
        for n, k, s, p, d in axes
    )
    points = (deform_groups, *kernel, grid_y.shape[1], grid_x.shape[1])
    # The first elements, because DyHead passes offsets and masks of a map of twice the size, which
    # the compiled op reads in this way.
    offset = offset.flatten()[: 2 * math.prod(points)].view(*points[:3], 2, *points[3:])
    mask = mask.flatten()[: math.prod(points)].view(points)
    offset_y, offset_x = offset.unbind(3)
    y = offset_y + grid_y[:, None, :, None]  # as `points`
    x_at = offset_x + grid_x[:, None]
    inside = (y > -1) & (y < height) & (x_at > -1) & (x_at < width)
    i, weight_y = bilinear_taps(y.where(inside, -2), height)
    j, weight_x = bilinear_taps(x_at.where(inside, -2), width)
    part = torch.arange(deform_groups, device=x.device)[:, None, None, None, None, None]
    pixels = ((part * height + i) * width)[..., :, None] + j[..., None, :]
    shares = weight_y[..., :, None] * weight_x[..., None, :] * mask[..., None, None]
    # Rows are pixels of a part of the channels.
    table = x.reshape(deform_groups, -1, height * width).transpose(1, 2).flatten(0, 1)
    samples = F.embedding_bag(
        pixels.view(-1, 4), table, mode='sum', per_sample_weights=shares.view(-1, 4)
    )
    samples = samples.view(deform_groups, kernel.numel(), math.prod(points[3:]), -1)
    samples = samples.permute(0, 3, 1, 2).reshape(groups, -1, samples.shape[2])
    return (weight.reshape(groups, -1, samples.shape[1]) @ samples).view(-1, *points[3:])


def bilinear_taps(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels (..., 2) around each coordinate and their weights, zero outside the map."""
    low = at.floor()
    pixels = torch.stack([low, low + 1], dim=-1)
    weights = torch.stack([low + 1 - at, at - low], dim=-1) * ((pixels >= 0) & (pixels < size))
    return pixels.long().clamp(0, size - 1), weights
