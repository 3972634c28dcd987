"""CARAFE, content-aware upsampling, with the signatures of `mmcv._ext`.

Called by FPN_CARAFE and mask heads. With scale s, kernel size k and r = (k - 1) / 2, every pixel of
the output is a weighted sum of the k * k pixels around its source,

    y[c, p, q] = sum_ij mask[g, i, j, p, q] * x[c, p // s + i - r, q // s + j - r],

with zeros outside the map; g is the group of channel c. Half precision computes in float32. The
naive op computes the same.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import add_gradients, compute_dtype, log_ops_provider

# Elements of the k * k pixels around those of a chunk of images.
_CHUNK_ELEMENTS = 2**25


@torch.no_grad()
def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Upsample features by weighted sums.

    Args:
        features: Shape (B, C, H, W), any float dtype.
        masks: Weights (B, group_size * kernel_size**2, H * scale_factor, W * scale_factor).
        output: Filled with the results (B, C, H * scale_factor, W * scale_factor).
        kernel_size: Side of the neighborhood, odd.
        group_size: Number of groups of channels.
        scale_factor: Output pixels per input pixel and axis.
    """
    log_ops_provider()
    dtype = compute_dtype(features)
    chunks = _chunks(kernel_size, features, masks, output)
    with torch.autocast(features.device.type, enabled=False):
        for x, mask, y in chunks:
            y.copy_(_upsample(x.to(dtype), mask.to(dtype), kernel_size, group_size, scale_factor))


@torch.no_grad()
def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Add the gradients to `grad_input` and `grad_masks`.

    The other arguments are those of `carafe_naive_forward`.
    """
    upsample = functools.partial(
        _upsample, kernel=kernel_size, groups=group_size, scale=scale_factor
    )
    tensors = (features, masks, grad_input, grad_masks, grad_output)
    for *inputs, grad_x, grad_mask, grad in _chunks(kernel_size, *tensors):
        add_gradients(upsample, inputs, (grad_x, grad_mask), grad)


@torch.no_grad()
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_forward`; fill `rfeatures`, which the backward pass gets, with the features.

    `routput` and `rmasks` are buffers of the compiled op and not used.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@torch.no_grad()
def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill `grad_input` and `grad_masks`.

    `rfeatures` are the features, as `carafe_forward` filled them. The other tensors whose names
    start with r are buffers of the compiled op and not used.
    """
    grads = grad_input.zero_(), grad_masks.zero_()
    settings = kernel_size, group_size, scale_factor
    carafe_naive_backward(grad_output, rfeatures, masks, *grads, *settings)


def _chunks(kernel: int, features: Tensor, *others: Tensor) -> zip[tuple[Tensor, ...]]:
    """The tensors, split along the batch."""
    images = max(1, _CHUNK_ELEMENTS // max(1, features.shape[1:].numel() * kernel**2))
    return zip(*(tensor.split(images) for tensor in (features, *others)), strict=True)


def _upsample(x: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = x.shape
    windows = F.pad(x, [kernel // 2] * 4).unflatten(1, (groups, channels // groups))
    # Channels last, for rows of the matrix products that are contiguous.
    windows = windows.permute(0, 1, 3, 4, 2).contiguous().unfold(2, kernel, 1).unfold(3, kernel, 1)
    masks = masks.view(batch, groups, kernel**2, height, scale, width, scale)
    masks = masks.permute(0, 1, 3, 5, 2, 4, 6).flatten(5)
    y = windows.flatten(5) @ masks  # (B, groups, H, W, C / groups, scale**2)
    y = y.unflatten(5, (scale, scale)).permute(0, 1, 4, 2, 5, 3, 6)
    return y.reshape(batch, channels, height * scale, width * scale)
