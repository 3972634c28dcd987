"""Selection of boxes with fixed output shapes: where mmdet removes boxes, their score becomes 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from mmfocalnet.deployment.operators import nms_mask
from mmfocalnet.errors import ConfigError


def inherits(instance: Any, base: type, *methods: str) -> bool:
    """Whether an object has the methods of a base class, not overridden."""
    return isinstance(instance, base) and all(
        getattr(type(instance), name) is getattr(base, name) for name in methods
    )


def require(supported: bool, part: Any, needed: str) -> None:
    """Raise if a part of a model is not supported.

    Args:
        supported: Whether it is.
        part: The part.
        needed: What is supported instead.

    Raises:
        ConfigError: With the name of the part's class.
    """
    if not supported:
        raise ConfigError(f'cannot export {type(part).__name__}: only {needed} is supported.')


def check_coder(head: Any) -> None:
    """Raise ConfigError unless the boxes of a head are decoded as `decode` does."""
    coder = head.bbox_coder
    supported = type(coder) is DeltaXYWHBBoxCoder and coder.clip_border
    require(supported, coder, 'DeltaXYWHBBoxCoder with clip_border=True')


def check_nms(settings: dict | None) -> None:
    """Raise ConfigError unless `suppress` supports these settings of mmcv's `batched_nms`."""
    kind = settings.get('type', 'nms') if settings else None
    unknown = set(settings or ()) - {'type', 'iou_threshold', 'class_agnostic'}
    if kind != 'nms' or unknown or 'iou_threshold' not in settings:
        raise ConfigError(
            f'cannot export the non-maximum suppression nms={settings} of test_cfg: set '
            "dict(type='nms', iou_threshold=...)."
        )


def decode(
    coder: DeltaXYWHBBoxCoder, boxes: Tensor, deltas: Tensor, height: int, width: int
) -> Tensor:
    """Apply deltas (B, N, 4 * C) to boxes (B, N, 4) and limit the results to the image.

    Returns:
        Boxes (B, N, C, 4).
    """
    decoded = coder.decode(boxes.flatten(0, 1), deltas.float().flatten(0, 1))
    decoded = decoded.unflatten(0, boxes.shape[:2]).unflatten(2, (-1, 4))
    return limit(decoded, height, width)


def limit(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clamp boxes (..., 4) to the image."""
    x, y = boxes.unflatten(-1, (2, 2)).clamp(min=0).unbind(-1)
    return torch.stack([x.clamp(max=width), y.clamp(max=height)], -1).flatten(-2)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, settings: dict, max_detections: int
) -> Tensor:
    """Set the scores of suppressed boxes to 0, as mmcv's `batched_nms`.

    Args:
        boxes: Shape (B, N, 4).
        scores: Shape (B, N); boxes of score 0 are ignored.
        groups: Label or level, shape (B, N); boxes of different groups do not suppress each other.
        settings: Arguments of mmcv's `nms`, and ``class_agnostic``.
        max_detections: Maximum number of boxes that keep their scores.

    Returns:
        Scores (B, N).
    """
    if not settings.get('class_agnostic', False):
        largest = torch.where(scores > 0, boxes.amax(-1), 0.0).amax(1, keepdim=True)
        boxes = boxes + (groups * (largest + 1)).unsqueeze(-1)
    kept = nms_mask(boxes, scores, settings['iou_threshold'], 0.0, max_detections)
    return torch.where(kept, scores, 0.0)


def best(scores: Tensor, count: int, *others: Tensor) -> tuple[Tensor, ...]:
    """Return the ``count`` largest scores of each image, descending, with what belongs to them.

    Args:
        scores: Shape (B, N).
        count: Number of results, also if N is less: then zeros follow.
        others: Tensors (B, N) or (B, N, C).

    Returns:
        Scores (B, count) and the others (B, count) or (B, count, C), which are zero where the score
        is zero.
    """
    scores, index = F.pad(scores, (0, count)).topk(count)
    found = scores > 0
    results = [scores]
    for tensor in others:
        tensor = F.pad(tensor, (*[0, 0] * (tensor.ndim - 2), 0, count))
        result = take(tensor, index)
        mask = found if tensor.ndim == 2 else found.unsqueeze(-1)
        results.append(torch.where(mask, result, torch.zeros_like(result)))
    return tuple(results)


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Elements ``index`` (B, K) of a tensor (B, N) or (B, N, C) along N."""
    if tensor.ndim == 3:
        index = index.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, index)


def activation(head: Any) -> Callable[[Tensor], Tensor]:
    """Return the function from a dense head's logits (..., C) to scores without background."""
    if head.use_sigmoid_cls:
        return torch.sigmoid
    return lambda logits: logits.softmax(-1)[..., :-1]
