"""The operators of `mmfocalnet.deployment.operators` in ONNX."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnxscript import BOOL, FLOAT, INT64
from onnxscript import opset18 as op

# The corner of a box of one pixel outside of every feature map. Float32 still resolves its size.
_OUTSIDE = -1e5


def nms_mask(
    boxes: FLOAT,
    scores: FLOAT,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
) -> BOOL:
    """Scatter what NonMaxSuppression selects: rows (image, class, box)."""
    # OpenVINO also removes boxes whose IoU equals the threshold.
    threshold = float(np.nextafter(np.float32(iou_threshold), np.float32(2)))
    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[max_detections]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[score_threshold]),
    )
    positions = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    count = op.Shape(selected, end=1)
    mask = op.ScatterND(
        op.Expand(op.Constant(value_int=0), op.Shape(scores)),
        positions,
        op.Expand(op.Constant(value_int=1), count),
    )
    return op.Cast(mask, to=BOOL.dtype)


def multilevel_roi_align(
    features: Sequence[FLOAT],
    rois: FLOAT,
    levels: INT64,
    output_size: Sequence[int],
    scales: Sequence[float],
    sampling_ratio: int,
) -> FLOAT:
    """One RoiAlign per level, whose results are put into the order of the RoIs."""
    images = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=INT64.dtype)
    boxes = op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1)
    if sampling_ratio == 0:
        boxes = _move_empty(boxes)
    places, pooled = [], []
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = op.NonZero(op.Equal(levels, op.Constant(value_int=level)))
        chosen = op.Squeeze(chosen, op.Constant(value_ints=[0]))
        values = op.RoiAlign(
            feature,
            op.Gather(boxes, chosen, axis=0),
            op.Gather(images, chosen, axis=0),
            coordinate_transformation_mode='half_pixel',
            output_height=output_size[0],
            output_width=output_size[1],
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )
        places.append(chosen)
        pooled.append(values)
    return op.Gather(op.Concat(*pooled, axis=0), _inverse(op.Concat(*places, axis=0)), axis=0)


def _inverse(permutation: INT64) -> INT64:
    """Positions of 0, 1, 2, ... in a permutation (N,)."""
    count = op.Shape(permutation)
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    numbers = op.Range(zero, op.Squeeze(count), one)
    indices = op.Unsqueeze(permutation, op.Constant(value_ints=[1]))
    return op.ScatterND(numbers, indices, numbers)


def _move_empty(boxes: FLOAT) -> FLOAT:
    """Replace empty boxes (N, 4) by boxes without a pixel, whose features are zero, too.

    OpenVINO divides by the number of samples, which is zero in an empty box.
    """
    low = op.Gather(boxes, op.Constant(value_ints=[0, 1]), axis=1)
    high = op.Gather(boxes, op.Constant(value_ints=[2, 3]), axis=1)
    size = op.ReduceMin(op.Sub(high, low), op.Constant(value_ints=[1]), keepdims=1)
    corner = _OUTSIDE, _OUTSIDE, _OUTSIDE + 1, _OUTSIDE + 1
    outside = op.Constant(value_floats=corner)
    return op.Where(op.Greater(size, op.Constant(value_float=0.0)), boxes, outside)
