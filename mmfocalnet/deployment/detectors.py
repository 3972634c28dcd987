"""Detectors of mmdet as modules from images to tensors of fixed shape, for `torch.export`."""

from __future__ import annotations

from mmdet.models import detectors
from torch import nn

from mmfocalnet.deployment.boxes import require
from mmfocalnet.deployment.dino_detector import DINODetector
from mmfocalnet.deployment.one_stage import OneStageDetector
from mmfocalnet.deployment.two_stage import TwoStageDetector


def build_detector(model: nn.Module, grid_sample: bool = True) -> nn.Module:
    """Build a module that computes what ``model.predict`` computes, with fixed output shapes.

    The module shares the layers of the model. Its ``forward(images, height, width)`` takes
    normalised images (B, 3, H, W) that are padded on the right and bottom, and the size without
    padding. It returns for K = ``max_per_img`` of ``test_cfg``:

    * boxes (B, K, 4), float32: x1, y1, x2, y2 in pixels, limited to the size without padding
    * scores (B, K), float32: descending, 0 where there is no detection
    * labels (B, K), int64
    * masks (B, K, h, w), float32, with a mask head: probabilities of the box's class inside the box

    Its attribute ``output_names`` names them. Without a detection, boxes, labels and masks are 0.

    Args:
        model: A one-stage detector with an anchor head such as ATSS, a two-stage detector with the
            standard or the cascade RoI head, or DINO, in eval mode.
        grid_sample: Whether deformable attention uses `torch.nn.functional.grid_sample`; otherwise
            it gathers pixels. Defaults to True.

    Raises:
        ConfigError: If a part of the model is not supported; the message contains its class.
    """
    if isinstance(model, detectors.TwoStageDetector):
        return TwoStageDetector(model)
    if isinstance(model, detectors.DINO):
        return DINODetector(model, grid_sample)
    # mmdet's RPN has no bbox_head.
    one_stage = isinstance(model, detectors.SingleStageDetector) and hasattr(model, 'bbox_head')
    require(one_stage, model, 'ATSS, RetinaNet, Faster, Mask or Cascade R-CNN, or DINO')
    return OneStageDetector(model)
