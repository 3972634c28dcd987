"""Scores of the prediction of a single image."""

from __future__ import annotations

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from mmfocalnet.datasets.label_maps import IGNORED


def mean_iou(truth: Tensor, prediction: Tensor, num_classes: int) -> float:
    """Mean IoU of the classes in the ground truth or prediction of one image.

    Args:
        truth: Labels (1, H, W); 255 is ignored.
        prediction: Labels (1, H, W); `num_classes` and above are not a class.
        num_classes: Number of classes.

    Returns:
        The mean, 0 to 1; 1 for an image without labels.
    """
    valid = truth != IGNORED
    truth, prediction = truth[valid], prediction[valid]
    ious = []
    for label in torch.cat((truth, prediction)).unique().tolist():
        if label < num_classes:
            true, predicted = truth == label, prediction == label
            ious.append(float((true & predicted).sum() / (true | predicted).sum()))
    return sum(ious) / len(ious) if ious else 1.0


def box_quality(truth: BaseDataElement, prediction: BaseDataElement) -> float:
    """Panoptic quality of one image with boxes instead of masks, over all classes together.

    Predictions are matched in the order of their scores, each to the unmatched true box of its
    class with the largest IoU, if that is at least 0.5.

    Args:
        truth: ``bboxes`` (N, 4) as x1, y1, x2, y2 in pixels and ``labels`` (N).
        prediction: ``bboxes`` (M, 4), ``labels`` (M) and ``scores`` (M).

    Returns:
        Twice the sum of the IoUs of matched boxes over N + M, 0 to 1; 1 if there are no boxes.
    """
    from mmdet.structures.bbox import bbox_overlaps, get_box_tensor

    if not len(truth) + len(prediction):
        return 1.0
    ious = bbox_overlaps(get_box_tensor(prediction.bboxes), get_box_tensor(truth.bboxes))
    ious = ious * (prediction.labels[:, None] == truth.labels[None])
    total = 0.0
    for row in prediction.scores.argsort(descending=True) if len(truth) else ():
        best = ious[row].argmax()
        if ious[row, best] >= 0.5:
            total += float(ious[row, best])
            ious[:, best] = 0
    return 2 * total / (len(truth) + len(prediction))
