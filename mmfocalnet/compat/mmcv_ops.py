"""Stand-in for `mmcv._ext`, the compiled ops that a plain `pip install` of mmcv does not bring.

Without it `import mmdet.models` fails. Our models call four of its ops: `nms` and `roi_align`,
which are here, and on GPUs sigmoid focal loss and multi-scale deformable attention, which are in
`mmcv_gpu_ops`. They work on any device, and every other op raises a sentence that says what to
install. Three providers, in this order: a compiled mmcv, which is left untouched, torchvision for
`nms` and `roi_align`, and plain PyTorch.

The results of the two here are those of the compiled ops with one exception: a RoI of negative
size, on which mmcv's CPU code raises, or with a corner that is not finite counts as one of no size.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.stand_in import StandIn

EXT = 'mmcv._ext'

_IN_USE = {
    'mmcv': 'mmcv ops: compiled.',
    'torchvision': 'mmcv ops: mmcv has none compiled, nms and roi_align run on torchvision, focal '
    'loss and deformable attention in plain PyTorch.',
    'pytorch': 'mmcv ops: mmcv has none compiled, nms, roi_align, focal loss and deformable '
    'attention run in plain PyTorch.',
}

# Boxes settled at once. A long chain of overlaps takes as many passes over a square of this side:
# small enough for one thread, as starting several for each pass can cost more than the pass.
_NMS_BLOCK = 128

# Elements of the largest temporary, some 300 MB with its companions. Each chunk of a backward pass
# goes once over the gradient of the whole map, so that small chunks are slow.
_CHUNK_ELEMENTS = 2**22

# What mmcv's max pooling starts from, and so what a bin without samples gives.
_MAX_START = -10000.0


# ------------------------------------------------------------------------------------------------
# Registration
# ------------------------------------------------------------------------------------------------


def ensure_mmcv_ops() -> str:
    """Make `import mmcv.ops` work, registering a stand-in where mmcv has no compiled ops.

    Harmless to call again. It prints nothing, so that importing the package keeps standard output
    clean; `log_ops_provider` names the provider once the first op runs.

    Returns:
        str: What runs nms and roi_align: 'mmcv', 'torchvision' or 'pytorch'.

    Raises:
        ImportError: mmcv is not installed.
    """
    _require_mmcv()
    if not _ext_imports():
        # An entry of None, or of a half-made module, would hide the stand-in.
        sys.modules.pop(EXT, None)
        provider = 'torchvision' if _torchvision_imports() else 'pytorch'
        # First, because a compiled file that does not import still has a finder of its own.
        sys.meta_path.insert(0, _StandIn(provider))
        importlib.import_module(EXT)
    return ops_provider()


def ops_provider() -> str:
    """What runs nms and roi_align, once `ensure_mmcv_ops` was called.

    Returns:
        str: 'mmcv' (compiled), 'torchvision' or 'pytorch'.

    Raises:
        ImportError: mmcv has no compiled ops and `ensure_mmcv_ops` was not called.
    """
    return vars(importlib.import_module(EXT)).get('OPS_PROVIDER', 'mmcv')


@functools.cache
def log_ops_provider() -> None:
    """Log, once per process, which provider is in use, through mmengine's current logger.

    The first op of the stand-in calls this: by then the Runner's logger exists and ranks are
    known, so the line reaches console and log file of `tools/train.py` once. Compiled ops are
    left untouched and cannot call it, so tools that want the line for those call it themselves.
    Ranks other than 0 and DataLoader workers stay silent.
    """
    # Imported late: mmengine's logging pulls in most of mmengine.
    from mmengine.dist import is_main_process
    from mmengine.logging import print_log

    if is_main_process() and torch.utils.data.get_worker_info() is None:
        print_log(_IN_USE[ensure_mmcv_ops()], logger='current', level=logging.INFO)


def _require_mmcv() -> None:
    try:
        importlib.import_module('mmcv')
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise
        raise ImportError(
            'mmfocalnet needs mmcv: install `mmfocalnet[onedl]` (the maintained forks) or '
            '`mmfocalnet[openmmlab]` (upstream) with pip.'
        ) from error


def _ext_imports() -> bool:
    """Whether `mmcv._ext` imports; a compiled file that is there but broken gets a warning."""
    try:
        importlib.import_module(EXT)
    except (ImportError, OSError) as error:
        if getattr(error, 'name', None) != EXT or not isinstance(error, ModuleNotFoundError):
            warnings.warn(
                f"mmcv's compiled ops are installed but do not load ({error}), so mmfocalnet "
                'stands in for those that its models call.',
                stacklevel=3,
            )
        return False
    return True


def _torchvision_imports() -> bool:
    # Beside a torch it was not built for, torchvision raises RuntimeError at import, or imports
    # without its compiled operators.
    try:
        importlib.import_module('torchvision')
        return all(
            hasattr(torch.ops.torchvision, op) for op in ('nms', 'roi_align', '_roi_align_backward')
        )
    except (ImportError, RuntimeError, OSError, AttributeError):
        return False


class _StandIn(StandIn):
    """Finds and fills `mmcv._ext`."""

    names = (EXT,)

    def __init__(self, provider: str) -> None:
        self.provider = provider

    def exec_module(self, module: ModuleType) -> None:
        not_compiled = f'not compiled (nms and roi_align: {self.provider})'
        vars(module).update(
            _provided(self.provider),
            OPS_PROVIDER=self.provider,
            get_compiler_version=lambda: not_compiled,
            get_compiling_cuda_version=lambda: not_compiled,
            __getattr__=_missing_op,
        )


def _provided(provider: str) -> dict[str, Callable]:
    # Imported late: its ops log through this module.
    from mmfocalnet.compat import mmcv_gpu_ops

    ops = dict(
        nms=nms,
        roi_align_forward=roi_align_forward,
        roi_align_backward=roi_align_backward,
        sigmoid_focal_loss_forward=mmcv_gpu_ops.sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward=mmcv_gpu_ops.sigmoid_focal_loss_backward,
        ms_deform_attn_forward=mmcv_gpu_ops.ms_deform_attn_forward,
        ms_deform_attn_backward=mmcv_gpu_ops.ms_deform_attn_backward,
    )
    if provider == 'torchvision':
        ops.update(
            nms=torchvision_nms,
            roi_align_forward=torchvision_roi_align_forward,
            roi_align_backward=torchvision_roi_align_backward,
        )
    return ops


def _missing_op(name: str) -> Callable:
    """The module's `__getattr__`: mmcv only asks that its ops exist, most are never called."""
    if name.startswith('__'):
        raise AttributeError(f"module '{EXT}' has no attribute '{name}'")
    return functools.partial(_raise_missing, name)


def _raise_missing(name: str, *args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(
        f"mmcv's op '{name}' is not available without compiled ops: install an mmcv build with "
        'compiled ops (see https://mmcv.readthedocs.io/en/latest/get_started/installation.html) '
        'in place of this one.'
    )


# ------------------------------------------------------------------------------------------------
# Non-maximum suppression
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression in plain PyTorch, with the signature of mmcv's own.

    Args:
        boxes (Tensor): Corners (x1, y1, x2, y2), shape (N, 4), any float dtype; half precision
            computes in float32.
        scores (Tensor): Shape (N,). Equal scores come in the order of torch's own sort, as in the
            compiled op.
        iou_threshold (float): A box goes when its IoU with a kept one is above this.
        offset (int): 0, or 1 for boxes whose last pixel counts (width x2 - x1 + 1).

    Returns:
        Tensor: Indices (int64) of the kept boxes by falling score, shape (K,).
    """
    log_ops_provider()
    left = scores.sort(descending=True).indices
    boxes = boxes.to(compute_dtype(boxes))
    kept = [left[:0]]
    # Each round settles the best boxes left, then drops all that these suppress, so that later
    # rounds see few boxes and no box is compared with one that is already gone.
    while len(left):
        block, left = left[:_NMS_BLOCK], left[_NMS_BLOCK:]
        suppresses = _overlaps(boxes[block], boxes[block], offset) > iou_threshold
        block = block[_greedy_keep(suppresses)]
        kept.append(block)
        if len(left):
            gone = (_overlaps(boxes[block], boxes[left], offset) > iou_threshold).any(0)
            left = left[~gone]
    return torch.cat(kept)


def _greedy_keep(suppresses: Tensor) -> Tensor:
    """Mask (N,) of what greedy suppression keeps, from the (N, N) relation, best box first.

    Box j stays if no kept box before it suppresses it. Starting from all boxes, the first i
    entries are final after i updates, so what no longer changes is the greedy answer; it settles
    after as many updates as the longest chain of boxes, few in practice.
    """
    suppresses = suppresses.triu(diagonal=1).float()
    keep = suppresses.new_ones(len(suppresses))
    while True:
        # A product rather than a masked any: it counts the kept suppressors of every box.
        update = (keep @ suppresses == 0).float()
        if torch.equal(update, keep):
            return keep.bool()
        keep = update


def _overlaps(boxes: Tensor, others: Tensor, offset: int) -> Tensor:
    """IoU of boxes (N, 4) with others (M, 4): (N, M); NaN, which suppresses nothing, for 0 / 0."""
    x1, y1, x2, y2 = boxes.t().unsqueeze(-1)
    others_x1, others_y1, others_x2, others_y2 = others.t().contiguous()
    width = torch.minimum(x2, others_x2).sub_(torch.maximum(x1, others_x1)).add_(offset)
    height = torch.minimum(y2, others_y2).sub_(torch.maximum(y1, others_y1)).add_(offset)
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    area = (x2 - x1 + offset) * (y2 - y1 + offset)
    others_area = (others_x2 - others_x1 + offset) * (others_y2 - others_y1 + offset)
    return shared / (area + others_area).sub_(shared)


# ------------------------------------------------------------------------------------------------
# RoI align
#
# Bilinear sampling is separable: sample (y, x) takes from pixel (i, j) the share
# hat(y - i) * hat(x - j) with hat(d) = max(0, 1 - |d|). So each bin has a short list of rows with
# weights and one of columns, and its average is a weighted sum over their product: a bag of rows
# of the (B*H*W, C) feature table. The gradient is the same bags read from the other side.
# ------------------------------------------------------------------------------------------------


class _Pooling(NamedTuple):
    """How RoIs turn into bins and samples; the names are mmcv's."""

    bins: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool


class _Axis(NamedTuple):
    """The samples of R RoIs along one axis of a feature map."""

    start: Tensor  # (R,) where the RoI begins, in pixels of the map
    step: Tensor  # (R,) length of a bin
    grid: Tensor  # (R,) int64, samples in a bin

    def select(self, rois: Tensor) -> _Axis:
        return _Axis(*(values[rois] for values in self))

    def samples(self, bins: int) -> tuple[Tensor, Tensor]:
        """Coordinates (R, bins, G), G being the largest grid, and which exist: (R, 1, G)."""
        index = torch.arange(int(self.grid.max()), device=self.grid.device)
        start, step, grid = (values[:, None, None] for values in self)
        # Added in the order of the compiled code, as rounding decides which samples are outside.
        first = start + torch.arange(bins, device=index.device)[:, None] * step
        return first + (index + 0.5) * step / grid, index < grid

    def taps(self, bins: int, size: int, adaptive: bool) -> tuple[Tensor, Tensor]:
        """Pixels (R, bins, K) of each bin and their weights, which sum to 1 inside the map."""
        at, exists = self.samples(bins)
        counts = exists & _inside(at, size)
        at = at.clamp(0, size - 1)
        if adaptive:
            # Samples are at most a pixel apart, so that G of them cover G + 1 pixels, not 2 * G.
            pixels, weights = _hat_weights(at, counts, at.shape[-1] + 1)
        else:
            pixels, weights = _hat_weights(at[..., None], counts[..., None], 2)
        return pixels.flatten(2), weights.flatten(2) / self.grid[:, None, None]


def _inside(at: Tensor, size: int) -> Tensor:
    """Which coordinates get a value: up to a pixel beyond the border, where it is repeated."""
    return (at >= -1) & (at <= size)


def _hat_weights(at: Tensor, counts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Pixels (..., width) under samples (..., G) and the weight that each gets from them all."""
    first = at.amin(-1, keepdim=True).floor()
    pixels = first + torch.arange(width, device=at.device)
    weights = (1 - (at[..., None, :] - pixels[..., None]).abs()).clamp(min=0)
    return pixels.long(), (weights * counts[..., None, :]).sum(-1)


def _axes(rois: Tensor, pooling: _Pooling) -> tuple[_Axis, _Axis]:
    """The vertical and the horizontal axis of rois (R, 5)."""
    x1, y1, x2, y2 = (rois[:, 1:] * pooling.spatial_scale - 0.5 * pooling.aligned).unbind(1)

    def axis(start: Tensor, end: Tensor, bins: int) -> _Axis:
        length = end - start if pooling.aligned else (end - start).clamp(min=1)
        step = length / bins
        if pooling.sampling_ratio > 0:
            return _Axis(start, step, torch.full_like(step, pooling.sampling_ratio).long())
        return _Axis(start, step, step.ceil().long())

    return axis(y1, y2, pooling.bins[0]), axis(x1, x2, pooling.bins[1])


def _groups(taps: tuple[Tensor, Tensor], bins: tuple[int, int], width: int) -> Iterator[Tensor]:
    """Groups of RoI indices with similar numbers (R,) of taps per bin, whose temporaries fit.

    Groups are padded to their longest bin of either axis, so they are split wherever one of the
    two doubles. `width` is the number of elements kept for each tap. RoIs without taps are in no
    group.
    """
    rows, columns = (taps[0] * bins[0]), (taps[1] * bins[1])
    # The hats of one axis, taps by samples, can outgrow the product in a long, thin RoI.
    cost = rows * columns * width + rows * taps[0] + columns * taps[1]
    shape = sum(64**i * taps[i].double().log2().ceil() for i in (0, 1))
    some = ((taps[0] > 0) & (taps[1] > 0)).nonzero().flatten()
    if len(some):
        order = some[shape[some].argsort()]
        # Neither term ever falls, so that the sum changes where either does.
        group = shape[order] + cost[order].cumsum(0) // _CHUNK_ELEMENTS
        yield from order.split(torch.unique_consecutive(group, return_counts=True)[1].tolist())


class _Bags(NamedTuple):
    """The bins of n RoIs, h * w each, as bags of weighted pixels, E in all."""

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
        """The transpose of `pool`: from (n * h * w, C) to a table of that many rows.

        Sorted by pixel these are bags again, which beats adding scattered rows one by one, and
        gives the same sum every time.
        """
        pixels, order = self.pixels.sort(stable=True)
        bins = torch.arange(len(grad), device=grad.device).repeat_interleave(self.counts)
        starts = torch.searchsorted(pixels, torch.arange(rows, device=grad.device))
        return F.embedding_bag(
            bins[order], grad, starts, mode='sum', per_sample_weights=self.weights[order]
        )


def _bags(rois: Tensor, size: tuple[int, int], pooling: _Pooling) -> Iterator[_Bags]:
    """The bags of all rois (R, 5) on maps of the given (H, W), joined to chunks that fit."""
    held: list[_Bags] = []
    for bags in _bags_of_groups(rois, size, pooling):
        held.append(bags)
        if sum(len(b.pixels) for b in held) > _CHUNK_ELEMENTS:
            yield _Bags(*map(torch.cat, zip(*held, strict=True)))
            held = []
    if held:
        yield _Bags(*map(torch.cat, zip(*held, strict=True)))


def _bags_of_groups(rois: Tensor, size: tuple[int, int], pooling: _Pooling) -> Iterator[_Bags]:
    axes = _axes(rois, pooling)
    adaptive = pooling.sampling_ratio <= 0
    taps = [torch.where(a.grid > 0, a.grid + 1, 0) if adaptive else 2 * a.grid for a in axes]
    for group in _groups(taps, pooling.bins, width=1):
        (y, wy), (x, wx) = (
            axis.select(group).taps(bins, pixels, adaptive)
            for axis, bins, pixels in zip(axes, pooling.bins, size, strict=True)
        )
        y = y + rois[group, 0].long()[:, None, None] * size[0]
        pixels = y[:, :, None, :, None] * size[1] + x[:, None, :, None, :]
        weights = wy[:, :, None, :, None] * wx[:, None, :, None, :]
        # Decided on the factors: a product may underflow, and the counts come from the factors.
        rows, columns = wy != 0, wx != 0
        used = rows[:, :, None, :, None] & columns[:, None, :, None, :]
        used = used.flatten().nonzero().flatten()
        counts = rows.sum(2)[:, :, None] * columns.sum(2)[:, None]
        yield _Bags(group, counts.flatten(), pixels.flatten()[used], weights.flatten()[used])


def _largest_samples(
    table: Tensor, rois: Tensor, size: tuple[int, int], pooling: _Pooling
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """RoI indices (n,), and value, row and column (n, h, w, C) of each bin's largest sample."""
    axes = _axes(rois, pooling)
    for group in _groups([a.grid for a in axes], pooling.bins, width=table.shape[1]):
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
        at.clamp(0, size - 1)[..., None], _inside(at, size)[..., None], width=2
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
    """RoI align in plain PyTorch, with the signature of mmcv's own; fills its output arguments.

    Args:
        input (Tensor): Features (B, C, H, W) of any float dtype; half precision computes in
            float32.
        rois (Tensor): (batch index, x1, y1, x2, y2), shape (R, 5).
        output (Tensor): Filled with the pooled features (R, C, h, w).
        argmax_y (Tensor): Filled with the row of the largest sample of every bin, shape
            (R, C, h, w), or -1; empty and left alone in average pooling.
        argmax_x (Tensor): Its column, likewise.
        aligned_height (int): Bins per column, h.
        aligned_width (int): Bins per row, w.
        spatial_scale (float): Pixels of the features per unit of the boxes.
        sampling_ratio (int): Samples per bin and axis; 0 takes one per pixel, rounded up.
        pool_mode (int): 0 for the largest sample, 1 for the average.
        aligned (bool): Shift by half a pixel, so that whole coordinates are pixel centres, and
            let RoIs be smaller than a pixel.
    """
    log_ops_provider()
    pooling = _Pooling((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    rois = _proper_rois(rois, compute_dtype(input))
    table = _channels_last(input).to(rois.dtype)
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
    """Gradient of `roi_align_forward`, with the signature of mmcv's own; adds to `grad_input`.

    Args:
        grad_output (Tensor): Gradient of the pooled features, shape (R, C, h, w).
        rois (Tensor): As in the forward pass, shape (R, 5).
        argmax_y (Tensor): As the forward pass filled it.
        argmax_x (Tensor): As the forward pass filled it.
        grad_input (Tensor): Gradient of the features (B, C, H, W), added to.
        aligned_height (int): As in the forward pass.
        aligned_width (int): As in the forward pass.
        spatial_scale (float): As in the forward pass.
        sampling_ratio (int): As in the forward pass.
        pool_mode (int): As in the forward pass.
        aligned (bool): As in the forward pass.
    """
    pooling = _Pooling((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    dtype = compute_dtype(grad_output)
    rois, grad_output = _proper_rois(rois, dtype), grad_output.to(dtype)
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
        grad = _channels_last(grad_output[bags.rois])
        grad = bags.spread(grad, batch * height * width).view(batch, height, width, channels)
        grad_input.add_(grad.permute(0, 3, 1, 2))


def _proper_rois(rois: Tensor, dtype: torch.dtype) -> Tensor:
    """The rois (R, 5), where one of negative size or without finite corners becomes empty.

    Such RoIs make the compiled ops raise or ask for endless samples, depending on the device.
    """
    rois = rois.to(dtype).masked_fill(~rois.isfinite().all(1, keepdim=True), 0)
    image, low, high = rois.split((1, 2, 2), dim=1)
    return torch.cat([image, low, torch.maximum(low, high)], dim=1)


def _channels_last(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B*H*W, C)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Float32 for half precision, else the dtype of the tensor."""
    return torch.promote_types(tensor.dtype, torch.float32)


# ------------------------------------------------------------------------------------------------
# The same through torchvision, where it has the operator
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def torchvision_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """`nms` through torchvision, which knows only boxes without the extra pixel (offset 0)."""
    if offset != 0:
        return nms(boxes, scores, iou_threshold, offset)
    log_ops_provider()
    dtype = compute_dtype(boxes)
    # mmcv compares in single precision: an IoU of exactly the threshold must not exceed it.
    threshold = float(torch.tensor(iou_threshold, dtype=dtype))
    # Sorted first: torchvision orders equal scores differently, which can change what is kept.
    order = scores.sort(descending=True).indices
    keep = torch.ops.torchvision.nms(boxes[order].to(dtype), scores[order].to(dtype), threshold)
    return order[keep]


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
            _proper_rois(rois, dtype),
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
            _proper_rois(rois, dtype),
            pooling['spatial_scale'],
            pooling['aligned_height'],
            pooling['aligned_width'],
            *grad_input.shape,
            pooling['sampling_ratio'],
            pooling['aligned'],
        )
    )
