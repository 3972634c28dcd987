"""Soft non-maximum suppression, with the signature of `mmcv._ext.softnms`.

The results equal the compiled op's, the order of equal scores included, except for the IoU of two
boxes without area: it is 0, whereas the compiled op makes the score NaN in the Gaussian method.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider
from mmfocalnet.compat.mmcv_ops.nms import iou_matrix

_NAIVE, _LINEAR, _GAUSSIAN = 0, 1, 2


@torch.no_grad()
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Take the best box, lower the scores of others by their IoU with it, repeat.

    Args:
        boxes: Corners (x1, y1, x2, y2), shape (N, 4), any float dtype; half precision computes in
            float32.
        scores: Shape (N,).
        dets: The first K rows of shape (N, 5) are filled with the boxes taken and their scores.
        iou_threshold: Methods 0 and 1 lower the scores of boxes with at least this IoU.
        sigma: Width of the Gaussian of method 2.
        min_score: A box is discarded if its score is lowered, or was, below this.
        method: The factor of a score by the IoU: 0 for 0, 1 for 1 - IoU, 2 for
            exp(-IoU**2 / sigma).
        offset: 0, or 1 for boxes that include their last pixel (width x2 - x1 + 1).

    Returns:
        Indices (int64) of the boxes taken, in that order, shape (K,).
    """
    log_ops_provider()
    boxes, scores = boxes.to(compute_dtype(boxes)), scores.to(compute_dtype(boxes), copy=True)
    rest = torch.arange(len(boxes), device=boxes.device)
    taken = []
    while len(rest):
        best = scores.argmax()
        taken.append(rest[best].clone())
        dets[len(taken) - 1] = torch.cat([boxes[rest[best]], scores[best, None]])
        rest[best], scores[best] = rest[0], scores[0]
        rest, scores = rest[1:], scores[1:]
        iou = iou_matrix(boxes[taken[-1], None], boxes[rest], offset)[0].nan_to_num(0)
        if method == _GAUSSIAN:
            scores = scores * (-(iou * iou) / sigma).exp()
        else:
            factor = 1 - iou if method == _LINEAR else torch.zeros_like(iou)
            scores = scores * factor.where(iou >= iou_threshold, 1)
        order = _discard(scores < min_score)
        rest, scores = rest[order], scores[order]
    return torch.stack(taken) if taken else rest


def _discard(discarded: Tensor) -> Tensor:
    """Indices of what remains, where the last of it takes the first free place, and so on.

    The order decides between equal scores.
    """
    count = int((~discarded).sum())
    order = torch.arange(count, device=discarded.device)
    order[discarded[:count]] = (~discarded[count:]).nonzero().flatten().flip(0) + count
    return order
