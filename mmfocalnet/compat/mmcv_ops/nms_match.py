"""Groups of boxes by non-maximum suppression, with the signature of `mmcv._ext.nms_match`.

Called by the sampler of PISA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider
from mmfocalnet.compat.mmcv_ops.nms import iou_matrix


@torch.no_grad()
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group each box that greedy non-maximum suppression keeps with those that it removes.

    Args:
        dets: Corners and score (x1, y1, x2, y2, score), shape (N, 5), any float dtype; half
            precision computes in float32.
        iou_threshold: A box is removed if its IoU with a kept one is at least this.

    Returns:
        Indices of each group by descending score, the kept box first.
    """
    log_ops_provider()
    boxes = dets[:, :4].to(compute_dtype(dets))
    remaining = dets[:, 4].sort(descending=True).indices
    groups = []
    while len(remaining):
        best, remaining = remaining[:1], remaining[1:]
        removed = iou_matrix(boxes[best], boxes[remaining], offset=0)[0] >= iou_threshold
        groups.append(torch.cat([best, remaining[removed]]).tolist())
        remaining = remaining[~removed]
    return groups
