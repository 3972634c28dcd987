"""Non-maximum suppression, with the signature of `mmcv._ext.nms`."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider

# Number of boxes compared at once. A chain of n overlapping boxes takes n passes over a matrix of
# this size. It is so small that one thread is faster than several.
_BLOCK = 128


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression in plain PyTorch.

    Args:
        boxes: Corners (x1, y1, x2, y2), shape (N, 4), any float dtype; half precision computes in
            float32.
        scores: Shape (N,). Equal scores are ordered by torch's sort, as in the compiled op.
        iou_threshold: A box is removed if its IoU with a kept one is above this.
        offset: 0, or 1 for boxes that include their last pixel (width x2 - x1 + 1).

    Returns:
        Indices (int64) of the kept boxes by descending score, shape (K,).
    """
    log_ops_provider()
    remaining = scores.sort(descending=True).indices
    boxes = boxes.to(compute_dtype(boxes))
    kept = [remaining[:0]]
    # Each round decides on the best boxes that remain, then removes all that they suppress, so
    # that no box is compared with one that is already removed.
    while len(remaining):
        block, remaining = remaining[:_BLOCK], remaining[_BLOCK:]
        suppresses = iou_matrix(boxes[block], boxes[block], offset) > iou_threshold
        block = block[_greedy_keep(suppresses)]
        kept.append(block)
        if len(remaining):
            suppressed = iou_matrix(boxes[block], boxes[remaining], offset) > iou_threshold
            remaining = remaining[~suppressed.any(0)]
    return torch.cat(kept)


def _greedy_keep(suppresses: Tensor) -> Tensor:
    """Mask (N,) of what greedy suppression keeps, from the (N, N) relation, best box first.

    Box j stays if no kept box before it suppresses it. Starting from all boxes, the first i
    entries are final after i updates, so a fixed point is the greedy answer. The number of updates
    is the length of the longest chain of boxes, which is small in practice.
    """
    suppresses = suppresses.triu(diagonal=1).float()
    keep = suppresses.new_ones(len(suppresses))
    while True:
        update = (keep @ suppresses == 0).float()  # no kept suppressors
        if torch.equal(update, keep):
            return keep.bool()
        keep = update


def iou_matrix(boxes: Tensor, others: Tensor, offset: int) -> Tensor:
    """IoU (N, M) of boxes (N, 4) and others (M, 4); 0 / 0 is NaN, which suppresses nothing."""
    x1, y1, x2, y2 = boxes.t().unsqueeze(-1)
    others_x1, others_y1, others_x2, others_y2 = others.t().contiguous()
    width = torch.minimum(x2, others_x2).sub_(torch.maximum(x1, others_x1)).add_(offset)
    height = torch.minimum(y2, others_y2).sub_(torch.maximum(y1, others_y1)).add_(offset)
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    area = (x2 - x1 + offset) * (y2 - y1 + offset)
    others_area = (others_x2 - others_x1 + offset) * (others_y2 - others_y1 + offset)
    return shared / (area + others_area).sub_(shared)


@torch.no_grad()
def torchvision_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """`nms` through torchvision, which supports only offset 0."""
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
