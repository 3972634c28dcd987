"""Deformable RoI pooling, with the signatures of `mmcv._ext`.

Called by DeformRoIPoolPack and ModulatedDeformRoIPoolPack. It averages bilinear samples in each bin
as the aligned `roi_align` does, after a shift of the bin by gamma * offset * (width, height) of the
RoI.

The results equal the compiled op's. The gradient of the offset is the derivative of the forward
pass, from which the compiled op's differs for samples less than a pixel outside the border pixels.
Half precision computes in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import add_gradients, compute_dtype, log_ops_provider
from mmfocalnet.compat.mmcv_ops.deform_conv import bilinear_taps
from mmfocalnet.compat.mmcv_ops.roi_align import (
    Pooling,
    axes_of_rois,
    channels_last,
    groups_by_size,
    inside_map,
    proper_rois,
)


@torch.no_grad()
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Average features in shifted bins of regions of interest.

    Args:
        input: Features (B, C, H, W), any float dtype.
        rois: Image index and corners (x1, y1, x2, y2) of each region, shape (R, 5).
        offset: Shifts (x, y) of each bin, shape (R, 2, h, w); empty for none.
        output: Filled with the averages (R, C, h, w).
        pooled_height: Bins per column, h.
        pooled_width: Bins per row, w.
        spatial_scale: Pixels of the features per unit of the boxes.
        sampling_ratio: Samples per bin and axis; 0 for one per pixel, rounded up.
        gamma: Shift per unit of offset and of the size of the RoI.
    """
    log_ops_provider()
    dtype = compute_dtype(input)
    pooling = Pooling((pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned=True)
    offset = _offset_or_zeros(offset, output).to(dtype)
    output.zero_()
    for group, pool in _groups(rois, pooling, gamma, dtype):
        output[group] = pool(input.to(dtype), offset[group]).to(output.dtype)


@torch.no_grad()
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add to `grad_input` and `grad_offset`.

    The other arguments are those of `deform_roi_pool_forward`.
    """
    dtype = compute_dtype(input)
    pooling = Pooling((pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned=True)
    offsets = _offset_or_zeros(offset, grad_output)
    sums = [torch.zeros_like(tensor, dtype=dtype) for tensor in (input, offsets)]
    for group, pool in _groups(rois, pooling, gamma, dtype):
        grad = sums[1][group]
        add_gradients(pool, (input, offsets[group]), (sums[0], grad), grad_output[group])
        sums[1][group] = grad
    grad_input.add_(sums[0])
    if offset.numel():
        grad_offset.add_(sums[1])


def _offset_or_zeros(offset: Tensor, pooled: Tensor) -> Tensor:
    rois, _, height, width = pooled.shape
    return offset if offset.numel() else pooled.new_zeros(rois, 2, height, width)


def _groups(
    rois: Tensor, pooling: Pooling, gamma: float, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]]:
    """Indices of RoIs of similar size, and the function that pools them."""
    rois = proper_rois(rois, dtype)
    axes = axes_of_rois(rois, pooling)
    for group in groups_by_size((axes[0].grid, axes[1].grid), pooling.bins, width=4):
        selected = [axis.select(group) for axis in axes]
        pairs = list(zip(selected, pooling.bins, strict=True))
        samples = [axis.samples(bins) for axis, bins in pairs]
        shifts = [gamma * bins * axis.step for axis, bins in pairs]
        share = 1 / (selected[0].grid * selected[1].grid).to(dtype)
        yield group, functools.partial(_pool, rois[group, 0].long(), samples, shifts, share)


def _pool(
    images: Tensor,
    samples: list[tuple[Tensor, Tensor]],
    shifts: list[Tensor],
    share: Tensor,
    x: Tensor,
    offset: Tensor,
) -> Tensor:
    """Pool n RoIs: (B, C, H, W) and offsets (n, 2, h, w) -> (n, C, h, w).

    `samples` are coordinates (n, bins, G) and masks (n, 1, G) of those used, vertical and
    horizontal; `shifts` (n,) are pixels per unit of offset, likewise; `share` (n,) is the weight of
    a sample.
    """
    height, width = x.shape[2:]
    (y, y_used), (x_at, x_used) = samples
    shift_y, shift_x = (shift[:, None, None, None] for shift in shifts)
    y = y[:, :, None] + shift_y * offset[:, 1, ..., None]  # (n, h, w, G)
    x_at = x_at[:, None] + shift_x * offset[:, 0, ..., None]
    y_used = (y_used[:, :, None] & inside_map(y, height))[..., :, None]
    x_used = (x_used[:, None] & inside_map(x_at, width))[..., None, :]
    i, weight_y = bilinear_taps(y.clamp(0, height - 1), height)
    j, weight_x = bilinear_taps(x_at.clamp(0, width - 1), width)
    i = i + images[:, None, None, None, None] * height
    pixels = i[..., :, None, :, None] * width + j[..., None, :, None, :]  # (n, h, w, G, G', 2, 2)
    weights = weight_y[..., :, None, :, None] * weight_x[..., None, :, None, :]
    weights = weights * (share[:, None, None, None, None] * (y_used & x_used))[..., None, None]
    pooled = F.embedding_bag(
        pixels.flatten(3).flatten(0, 2),
        channels_last(x),
        mode='sum',
        per_sample_weights=weights.flatten(3).flatten(0, 2),
    )
    return pooled.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)
