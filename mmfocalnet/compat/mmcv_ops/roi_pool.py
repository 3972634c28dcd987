"""RoI max pooling, with the signatures of `mmcv._ext`.

Along each axis, bin i of n covers the pixels from floor(start + i * step) up to, but not including,
ceil(start + (i + 1) * step) inside the map, with start = scale * x1, step = length / n and
length = scale * (x2 + 1) - start. A bin without pixels is 0.

The results equal the compiled op's with these exceptions: half precision computes the bins in
float32; a NaN feature makes its bins NaN instead of being skipped; and the gradient of a RoI of
negative size, which has no pixels, is 0 and not that of pixel (0, 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider
from mmfocalnet.compat.mmcv_ops.roi_align import channels_last, groups_by_size


@torch.no_grad()
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maximum in each bin of regions of interest.

    Args:
        input: Features (B, C, H, W), any float dtype.
        rois: Image index and corners (x1, y1, x2, y2) of each region, shape (R, 5).
        output: Filled with the maxima (R, C, h, w).
        argmax: Filled with the pixel y * W + x (int32) of each maximum, the first of equal ones,
            or -1 without pixels.
        pooled_height: Bins per column, h.
        pooled_width: Bins per row, w.
        spatial_scale: Pixels of the features per unit of the boxes.
    """
    log_ops_provider()
    output.zero_()
    argmax.fill_(-1)
    height, width = input.shape[2:]
    corners = rois[:, 1:].to(compute_dtype(rois))
    x1, y1, x2, y2 = corners.add(corners.new_tensor([0, 0, 1, 1])).mul(spatial_scale).unbind(1)
    exists = (x2 > x1) & (y2 > y1) & corners.isfinite().all(1)
    rows = _bins(y1, y2, pooled_height, height)
    columns = _bins(x1, x2, pooled_width, width)
    table = channels_last(input)
    sizes = tuple((end - start).amax(1).where(exists, 0) for start, end in (rows, columns))
    bins = (pooled_height, pooled_width)
    for group in groups_by_size(sizes, bins, width=table.shape[1]):
        (y, y_used), (x, x_used) = (_pixels(*(t[group] for t in b)) for b in (rows, columns))
        pixels = (y[:, :, None, :, None] * width + x[:, None, :, None, :]).flatten(3)
        used = (y_used[:, :, None, :, None] & x_used[:, None, :, None, :]).flatten(3)
        first = rois[group, 0].long()[:, None, None, None] * (height * width)
        values = table[(first + pixels).where(used, 0)]  # (n, h, w, K, C)
        largest, which = values.masked_fill_(~used[..., None], -torch.inf).max(3)
        found = used.any(3)[..., None]
        output[group] = largest.where(found, 0).permute(0, 3, 1, 2)
        at = pixels.gather(3, which).where(found, -1)
        argmax[group] = at.permute(0, 3, 1, 2).to(argmax.dtype)


@torch.no_grad()
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of the features to `grad_input` (B, C, H, W).

    `grad_output` (R, C, h, w) is the gradient of the maxima; the other arguments are those of
    `roi_pool_forward`, `argmax` as it filled it.
    """
    channels, height, width = grad_input.shape[1:]
    channel = torch.arange(channels, device=rois.device)[:, None, None]
    plane = rois[:, 0].long()[:, None, None, None] * channels + channel
    index, used = plane * (height * width) + argmax, argmax >= 0
    grad = torch.zeros_like(grad_input, dtype=compute_dtype(grad_input)).flatten()
    grad.index_add_(0, index[used], grad_output[used].to(grad.dtype))
    grad_input.add_(grad.view_as(grad_input))


def _bins(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First pixel and end of each bin (R, bins) along one axis of a map."""
    index, step = torch.arange(bins, device=start.device), (end - start)[:, None] / bins
    first = (index * step + start[:, None]).floor()
    after = ((index + 1) * step + start[:, None]).ceil()
    first, after = (at.nan_to_num(0).clamp(0, size).long() for at in (first, after))
    return first, after


def _pixels(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (n, bins, K) of bins of up to K, and a mask of those inside the bin."""
    longest = int((end - start).max())
    pixels = start[..., None] + torch.arange(longest, device=start.device)
    return pixels, pixels < end[..., None]
