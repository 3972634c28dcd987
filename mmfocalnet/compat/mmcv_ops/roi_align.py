"""RoI align, average and maximum pooling, with the signatures of `mmcv._ext`.

The results equal the compiled op's, except for a RoI of negative size, on which mmcv's CPU code
raises, or with a NaN or infinite corner: both count as a RoI of size zero.

Bilinear sampling is separable: sample (y, x) takes from pixel (i, j) the share
hat(y - i) * hat(x - j) with hat(d) = max(0, 1 - |d|). Each bin therefore has a short list of rows
with weights and one of columns, and its average is a weighted sum over their product: a bag (as in
`torch.nn.EmbeddingBag`) of rows of the (B*H*W, C) feature table. The gradient is the transpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider

# Elements of the largest temporary, about 300 MB with its companions. Each chunk of a backward
# pass adds to the gradient of the complete map, so small chunks are slow.
_CHUNK_ELEMENTS = 2**22

# The initial maximum in mmcv's max pooling, and so the value of a bin without samples.
_MAX_START = -10000.0


class Pooling(NamedTuple):
    """How RoIs are divided into bins and samples; the names are mmcv's."""

    bins: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool


class _Axis(NamedTuple):
    """The samples of R RoIs along one axis of a feature map."""

    start: Tensor  # (R,) first coordinate of the RoI, in pixels of the map
    step: Tensor  # (R,) length of a bin
    grid: Tensor  # (R,) int64, samples in a bin

    def select(self, rois: Tensor) -> _Axis:
        return _Axis(*(values[rois] for values in self))

    def samples(self, bins: int) -> tuple[Tensor, Tensor]:
        """Coordinates (R, bins, G) for the largest grid G, and a mask (R, 1, G) of those used."""
        index = torch.arange(int(self.grid.max()), device=self.grid.device)
        start, step, grid = (values[:, None, None] for values in self)
        # The order of the compiled code: rounding decides which samples are outside.
        first = start + torch.arange(bins, device=index.device)[:, None] * step
        return first + (index + 0.5) * step / grid, index < grid

    def taps(self, bins: int, size: int, adaptive: bool) -> tuple[Tensor, Tensor]:
        """Pixels (R, bins, K) of each bin and their weights, which sum to 1 inside the map."""
        at, exists = self.samples(bins)
        counts = exists & inside_map(at, size)
        at = at.clamp(0, size - 1)
        if adaptive:
            # Samples are at most a pixel apart, so that G of them cover G + 1 pixels, not 2 * G.
            pixels, weights = _hat_weights(at, counts, at.shape[-1] + 1)
        else:
            pixels, weights = _hat_weights(at[..., None], counts[..., None], 2)
        return pixels.flatten(2), weights.flatten(2) / self.grid[:, None, None]


def inside_map(at: Tensor, size: int) -> Tensor:
    """Mask of coordinates with a value: up to a pixel beyond the border, which is repeated."""
    return (at >= -1) & (at <= size)


def _hat_weights(at: Tensor, counts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Pixels (..., width) under samples (..., G) and the summed weight of each."""
    first = at.amin(-1, keepdim=True).floor()
    pixels = first + torch.arange(width, device=at.device)
    weights = (1 - (at[..., None, :] - pixels[..., None]).abs()).clamp(min=0)
    return pixels.long(), (weights * counts[..., None, :]).sum(-1)


def axes_of_rois(rois: Tensor, pooling: Pooling) -> tuple[_Axis, _Axis]:
    """The vertical and the horizontal axis of rois (R, 5)."""
    x1, y1, x2, y2 = (rois[:, 1:] * pooling.spatial_scale - 0.5 * pooling.aligned).unbind(1)

    def axis(start: Tensor, end: Tensor, bins: int) -> _Axis:
        length = end - start if pooling.aligned else (end - start).clamp(min=1)
        step = length / bins
        if pooling.sampling_ratio > 0:
            return _Axis(start, step, torch.full_like(step, pooling.sampling_ratio).long())
        return _Axis(start, step, step.ceil().long())

    return axis(y1, y2, pooling.bins[0]), axis(x1, x2, pooling.bins[1])


def groups_by_size(
    taps: tuple[Tensor, Tensor], bins: tuple[int, int], width: int
) -> Iterator[Tensor]:
    """Group RoI indices by numbers (R,) of taps per bin, in chunks of `_CHUNK_ELEMENTS`.

    A group is padded to its longest bin of either axis, so that the numbers in it differ by less
    than a factor of two. `width` is the number of elements per tap. RoIs without taps are left
    out.
    """
    rows, columns = (taps[0] * bins[0]), (taps[1] * bins[1])
    # In a long, thin RoI the weights of one axis, taps by samples, can outgrow the product.
    cost = rows * columns * width + rows * taps[0] + columns * taps[1]
    shape = sum(64**i * taps[i].double().log2().ceil() for i in (0, 1))
    some = ((taps[0] > 0) & (taps[1] > 0)).nonzero().flatten()
    if len(some):
        order = some[shape[some].argsort()]
        # Neither term decreases, so the sum changes where either does.
        group = shape[order] + cost[order].cumsum(0) // _CHUNK_ELEMENTS
        yield from order.split(torch.unique_consecutive(group, return_counts=True)[1].tolist())


class _Bags(NamedTuple):
    """The bins of n RoIs, h * w each, as bags of weighted pixels, E in total."""

    rois: Tensor  # (n,) indices
    counts: Tensor  # (n * h * w,) pixels of each bin
    pixels: Tensor  # (E,) rows of the (B*H*W, C) table
    weights: Tensor  # (E,)

    def pool(self, table: Tensor) -> Tensor:
        """Weighted sums of the table (B*H*W, C) for every bin: (n * h * w, C)."""
        starts = self.counts.cumsum(0) - self.counts
        return F.embedding_bag(
            self.pixels, table, starts, mode='sum', per_sample_weights=self.weights
        )

    def spread(self, grad: Tensor, rows: int) -> Tensor:
        """The transpose of `pool`: from (n * h * w, C) to a table of `rows` rows.

        Sorted by pixel the weights form bags again, which is faster than adding scattered rows and
        deterministic.
        """
        pixels, order = self.pixels.sort(stable=True)
        bins = torch.arange(len(grad), device=grad.device).repeat_interleave(self.counts)
        starts = torch.searchsorted(pixels, torch.arange(rows, device=grad.device))
        return F.embedding_bag(
            bins[order], grad, starts, mode='sum', per_sample_weights=self.weights[order]
        )


def _bags(rois: Tensor, size: tuple[int, int], pooling: Pooling) -> Iterator[_Bags]:
    """The bags of all rois (R, 5) on maps (H, W), in chunks of `_CHUNK_ELEMENTS`."""
    held: list[_Bags] = []
    for bags in _bags_ofgroups_by_size(rois, size, pooling):
        held.append(bags)
        if sum(len(b.pixels) for b in held) > _CHUNK_ELEMENTS:
            yield _Bags(*map(torch.cat, zip(*held, strict=True)))
            held = []
    if held:
        yield _Bags(*map(torch.cat, zip(*held, strict=True)))


def _bags_ofgroups_by_size(
    rois: Tensor, size: tuple[int, int], pooling: Pooling
) -> Iterator[_Bags]:
    axes = axes_of_rois(rois, pooling)
    adaptive = pooling.sampling_ratio <= 0
    taps = [torch.where(a.grid > 0, a.grid + 1, 0) if adaptive else 2 * a.grid for a in axes]
    for group in groups_by_size(taps, pooling.bins, width=1):
        (y, wy), (x, wx) = (
            axis.select(group).taps(bins, pixels, adaptive)
            for axis, bins, pixels in zip(axes, pooling.bins, size, strict=True)
        )
        y = y + rois[group, 0].long()[:, None, None] * size[0]
        pixels = y[:, :, None, :, None] * size[1] + x[:, None, :, None, :]
        weights = wy[:, :, None, :, None] * wx[:, None, :, None, :]
        # Not from `weights`, which may underflow to 0: the counts use the factors as well.
        rows, columns = wy != 0, wx != 0
        used = rows[:, :, None, :, None] & columns[:, None, :, None, :]
        used = used.flatten().nonzero().flatten()
        counts = rows.sum(2)[:, :, None] * columns.sum(2)[:, None]
        yield _Bags(group, counts.flatten(), pixels.flatten()[used], weights.flatten()[used])


def _largest_samples(
    table: Tensor, rois: Tensor, size: tuple[int, int], pooling: Pooling
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """RoI indices (n,), and value, row and column (n, h, w, C) of each bin's largest sample."""
    axes = axes_of_rois(rois, pooling)
    for group in groups_by_size([a.grid for a in axes], pooling.bins, width=table.shape[1]):
        samples = [a.select(group).samples(b) for a, b in zip(axes, pooling.bins, strict=True)]
        (y, y_exists), (x, x_exists) = samples
        values = _sample_values(table, rois[group, 0].long(), y, x, size)
        exists = (y_exists[:, :, None, :, None] & x_exists[:, None, :, None, :]).flatten(3)
        largest, which = values.masked_fill_(~exists[..., None], -torch.inf).max(3)
        at_y = y[:, :, None].expand(-1, -1, x.shape[1], -1).gather(3, which // x.shape[2])
        at_x = x[:, None].expand(-1, y.shape[1], -1, -1).gather(3, which % x.shape[2])
        found = largest > _MAX_START
        yield (
            group,
            largest.where(found, _MAX_START),
            at_y.where(found, -1),
            at_x.where(found, -1),
        )


def _sample_values(
    table: Tensor, images: Tensor, y: Tensor, x: Tensor, size: tuple[int, int]
) -> Tensor:
    """Values (n, h, w, Gh * Gw, C) where rows y (n, h, Gh) cross columns x (n, w, Gw)."""
    (i, wi), (j, wj) = (_point_taps(at, pixels) for at, pixels in zip((y, x), size, strict=True))
    i = i + images[:, None, None, None] * size[0]
    i, wi = (rows[:, :, None, :, None, :, None] for rows in (i, wi))
    j, wj = (columns[:, None, :, None, :, None, :] for columns in (j, wj))
    pixels, weights = i * size[1] + j, wi * wj
    values = F.embedding_bag(
        pixels.view(-1, 4), table, mode='sum', per_sample_weights=weights.view(-1, 4)
    )
    return values.view(*pixels.shape[:3], -1, table.shape[1])


def _point_taps(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels (..., 2) around each coordinate and their weights, zero outside the map."""
    pixels, weights = _hat_weights(
        at.clamp(0, size - 1)[..., None], inside_map(at, size)[..., None], width=2
    )
    return pixels.clamp(0, size - 1), weights


def _spread_largest(
    grad_output: Tensor, images: Tensor, y: Tensor, x: Tensor, grad_input: Tensor
) -> None:
    """Add gradients (R, C, h, w) to grad_input (B, C, H, W) around the samples at (y, x)."""
    channels, height, width = grad_input.shape[1:]
    # As in the compiled code a row of -1 means no sample, although -1.0 can also be one.
    i, wi = _point_taps(y.masked_fill(y == -1, -2), height)
    j, wj = _point_taps(x, width)
    plane = images[:, None] * channels + torch.arange(channels, device=images.device)
    i = plane[..., None, None, None] * height + i
    index = i[..., :, None] * width + j[..., None, :]
    share = wi[..., :, None] * wj[..., None, :] * grad_output[..., None, None]
    grad_input.view(-1).index_add_(0, index.view(-1), share.view(-1))


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool features in regions of interest.

    Args:
        input: Features (B, C, H, W) of any float dtype; half precision computes in float32.
        rois: Image index and corners (x1, y1, x2, y2) of each region, shape (R, 5).
        output: Filled with the pooled features (R, C, h, w).
        argmax_y: Filled with the row of the largest sample of every bin, shape (R, C, h, w), or
            -1; empty and not filled in average pooling.
        argmax_x: Filled with its column, likewise.
        aligned_height: Bins per column, h.
        aligned_width: Bins per row, w.
        spatial_scale: Pixels of the features per unit of the boxes.
        sampling_ratio: Samples per bin and axis; 0 for one per pixel, rounded up.
        pool_mode: 0 for the maximum of the samples, 1 for the average.
        aligned: Shift by half a pixel, so that integer coordinates are pixel centres, and let
            RoIs be smaller than a pixel.
    """
    log_ops_provider()
    pooling = Pooling((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    rois = proper_rois(rois, compute_dtype(input))
    table = channels_last(input).to(rois.dtype)
    if pool_mode == 0:
        output.fill_(_MAX_START)
        argmax_y.fill_(-1)
        argmax_x.fill_(-1)
        for group, *pooled in _largest_samples(table, rois, input.shape[2:], pooling):
            for target, values in zip((output, argmax_y, argmax_x), pooled, strict=True):
                target[group] = values.permute(0, 3, 1, 2).to(target.dtype)
        return
    output.zero_()
    for bags in _bags(rois, input.shape[2:], pooling):
        pooled = bags.pool(table).view(len(bags.rois), *pooling.bins, -1)
        output[bags.rois] = pooled.permute(0, 3, 1, 2).to(output.dtype)


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of the features to `grad_input` (B, C, H, W).

    `grad_output` (R, C, h, w) is the gradient of the pooled features; the other arguments are
    those of `roi_align_forward`, `argmax_y` and `argmax_x` as it filled them.
    """
    pooling = Pooling((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    dtype = compute_dtype(grad_output)
    rois, grad_output = proper_rois(rois, dtype), grad_output.to(dtype)
    if pool_mode == 0:
        grad = torch.zeros_like(grad_input, dtype=dtype, memory_format=torch.contiguous_format)
        y, x = argmax_y.to(dtype), argmax_x.to(dtype)
        # Four shares of every output element are held at once.
        step = max(1, _CHUNK_ELEMENTS // (4 * max(1, grad_output[:1].numel())))
        for part in torch.arange(len(rois), device=rois.device).split(step):
            _spread_largest(grad_output[part], rois[part, 0].long(), y[part], x[part], grad)
        grad_input.add_(grad)
        return
    batch, channels, height, width = grad_input.shape
    for bags in _bags(rois, (height, width), pooling):
        grad = channels_last(grad_output[bags.rois])
        grad = bags.spread(grad, batch * height * width).view(batch, height, width, channels)
        grad_input.add_(grad.permute(0, 3, 1, 2))


def proper_rois(rois: Tensor, dtype: torch.dtype) -> Tensor:
    """The rois (R, 5), where those of negative size or without finite corners become empty.

    Such RoIs make the compiled ops raise or take endless samples, depending on the device.
    """
    rois = rois.to(dtype).masked_fill(~rois.isfinite().all(1, keepdim=True), 0)
    image, low, high = rois.split((1, 2, 2), dim=1)
    return torch.cat([image, low, torch.maximum(low, high)], dim=1)


def channels_last(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B*H*W, C)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


@torch.no_grad()
def torchvision_roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    **pooling: Any,
) -> None:
    """`roi_align_forward` through torchvision, which has no max pooling (pool_mode 0)."""
    if pooling['pool_mode'] == 0:
        return roi_align_forward(input, rois, output, argmax_y, argmax_x, **pooling)
    log_ops_provider()
    dtype = compute_dtype(input)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input.to(dtype),
            proper_rois(rois, dtype),
            pooling['spatial_scale'],
            pooling['aligned_height'],
            pooling['aligned_width'],
            pooling['sampling_ratio'],
            pooling['aligned'],
        )
    )


@torch.no_grad()
def torchvision_roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **pooling: Any,
) -> None:
    """`roi_align_backward` through torchvision, whose CUDA gradient is not deterministic."""
    if pooling['pool_mode'] == 0 or torch.are_deterministic_algorithms_enabled():
        return roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, **pooling)
    dtype = compute_dtype(grad_output)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype),
            proper_rois(rois, dtype),
            pooling['spatial_scale'],
            pooling['aligned_height'],
            pooling['aligned_width'],
            *grad_input.shape,
            pooling['sampling_ratio'],
            pooling['aligned'],
        )
    )
