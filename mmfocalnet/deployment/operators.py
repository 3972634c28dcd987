"""Operators of detectors with fixed output shapes, and their translation to ONNX.

`nms_mask` and `multilevel_roi_align` are operators of PyTorch, so that `torch.export` records each
as one node. ``torch.onnx.export(..., custom_translation_table=onnx_translations())`` replaces the
nodes by NonMaxSuppression and RoiAlign. To load a program that `torch.export.save` wrote, import
this module first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _operator(schema: str, fake: Callable[..., Tensor]) -> Callable[[Callable], Any]:
    """Register a function as an operator. PyTorch before 2.4, which cannot, runs the function."""

    def register(function: Callable) -> Any:
        if not hasattr(torch.library, 'custom_op'):
            return function
        name = f'mmfocalnet::{function.__name__}'
        operator = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        operator.register_fake(fake)
        return operator

    return register


def _nms_mask_shape(boxes: Tensor, scores: Tensor, *settings: Any) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


@_operator(
    '(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, int max_detections)'
    ' -> Tensor',
    _nms_mask_shape,
)
def nms_mask(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
) -> Tensor:
    """Mark the boxes that greedy non-maximum suppression keeps.

    Args:
        boxes: Corners (x1, y1, x2, y2), shape (B, N, 4), float32.
        scores: Shape (B, N), float32.
        iou_threshold: A box is removed if its IoU with a kept one is above this.
        score_threshold: Boxes with this score or less are removed. Of boxes with equal scores,
            the first is kept.
        max_detections: Maximum number of boxes per image.

    Returns:
        Mask (B, N), bool.
    """
    from mmcv.ops import nms

    mask = torch.zeros_like(scores, dtype=torch.bool)
    for image_mask, image_boxes, image_scores in zip(mask, boxes, scores, strict=True):
        ranked, order = image_scores.sort(descending=True, stable=True)
        order = order[ranked > score_threshold]
        # Distinct scores, because nms does not sort equal ones by index.
        ranks = torch.arange(len(order), 0, -1, dtype=scores.dtype, device=scores.device)
        _, kept = nms(image_boxes[order], ranks, iou_threshold)
        image_mask[order[kept[:max_detections]]] = True
    return mask


def _pooled_shape(
    features: Sequence[Tensor], rois: Tensor, levels: Tensor, size: Sequence[int], *settings: Any
) -> Tensor:
    return features[0].new_empty(rois.shape[0], features[0].shape[1], *size)


@_operator(
    '(Tensor[] features, Tensor rois, Tensor levels, int[] output_size, float[] scales, '
    'int sampling_ratio) -> Tensor',
    _pooled_shape,
)
def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> Tensor:
    """Pool each RoI from one of several feature maps by RoIAlign.

    Args:
        features: Maps (B, C, H_i, W_i), float32.
        rois: Index of the image and corners (x1, y1, x2, y2) in pixels, shape (N, 5), float32.
        levels: Index of the map of each RoI, shape (N,), int64.
        output_size: Height and width of the result.
        scales: Size of each map relative to the image.
        sampling_ratio: Samples per cell and direction; 0 for one per pixel of the map.

    Returns:
        Pooled features (N, C, height, width).
    """
    from mmcv.ops import roi_align

    pooled = features[0].new_zeros(len(rois), features[0].shape[1], *output_size)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        if len(chosen):
            settings = tuple(output_size), scale, sampling_ratio, 'avg', True
            pooled[chosen] = roi_align(feature, rois[chosen], *settings)
    return pooled


def deformable_attention(
    maps: Sequence[Tensor], locations: Tensor, weights: Tensor, grid_sample: bool = True
) -> Tensor:
    """Sample feature maps and sum the samples by attention weights, in plain operators.

    Args:
        maps: Values (B * heads, C, H_i, W_i) of the L levels.
        locations: Where Q queries take P samples of each level, (x, y) from 0 to 1 over the map,
            shape (B, Q, heads, L, P, 2).
        weights: Attention weights, shape (B, Q, heads, L, P).
        grid_sample: Sample by `torch.nn.functional.grid_sample`, otherwise by gathering the four
            neighbours. Defaults to True.

    Returns:
        Weighted sums of the samples, shape (B, Q, heads * C).
    """
    sample = _sample_by_grid if grid_sample else _sample_by_gather
    batch, _, heads = locations.shape[:3]
    # Queries last, because the operators are faster on this layout.
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights = weights.permute(3, 0, 2, 4, 1).flatten(1, 2).unsqueeze(2)
    output = 0
    for values, grid, level_weights in zip(maps, grids.unbind(), weights.unbind(), strict=True):
        output = output + (sample(values, grid) * level_weights).sum(2)
    output = output.unflatten(0, (batch, heads))  # (B, heads, C, Q)
    return output.permute(0, 3, 1, 2).flatten(2)


def _sample_by_grid(values: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples (N, C, P, Q) of maps (N, C, H, W) at (x, y) from -1 to 1, (N, P, Q, 2)."""
    return F.grid_sample(values, grid, align_corners=False)


def _sample_by_gather(values: Tensor, grid: Tensor) -> Tensor:
    """As `_sample_by_grid`, from the four pixels around each sample; those outside are zero."""
    channels, height, width = values.shape[1:]
    x = (grid[..., 0] + 1) * (width / 2) - 0.5
    y = (grid[..., 1] + 1) * (height / 2) - 0.5
    left, top = x.floor(), y.floor()
    values = values.flatten(2)
    samples = 0
    for column, column_share in ((left, left + 1 - x), (left + 1, x - left)):
        for row, row_share in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = torch.where(inside, column_share * row_share, 0.0)
            pixel = torch.where(inside, row * width + column, 0.0).long()
            pixel = pixel.flatten(1).unsqueeze(1).expand(-1, channels, -1)
            found = values.gather(2, pixel).unflatten(2, grid.shape[1:3])
            samples = samples + found * share.unsqueeze(1)
    return samples


def onnx_translations() -> dict[Any, Callable]:
    """Return the ``custom_translation_table`` of `torch.onnx.export` for these operators.

    Raises:
        ImportError: If onnxscript is not installed.
    """
    from mmfocalnet.deployment import onnx_operators

    operators = torch.ops.mmfocalnet
    return {
        operators.nms_mask.default: onnx_operators.nms_mask,
        operators.multilevel_roi_align.default: onnx_operators.multilevel_roi_align,
    }
