"""Dense heads with anchors: one-stage detectors and region proposal networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from mmfocalnet.deployment.boxes import (
    activation,
    best,
    check_coder,
    check_nms,
    decode,
    inherits,
    require,
    suppress,
    take,
)
from mmfocalnet.deployment.graph import weight_dtype


class OneStageDetector(nn.Module):
    """A detector of mmdet with one dense head, such as ATSS or RetinaNet.

    Args:
        model: The detector.

    Raises:
        ConfigError: If its head or test_cfg is not supported.
    """

    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = DenseHead(model.bbox_head)

    def forward(self, images: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `mmfocalnet.deployment.detectors.build_detector`."""
        features = extract_features(self.model, images)
        boxes, scores, labels = self.head.predict(features, height, width)
        scores, boxes, labels = best(scores, self.head.settings.max_per_img, boxes, labels)
        return boxes, scores, labels


class DenseHead:
    """A dense head with anchors and non-maximum suppression, as mmdet predicts with it.

    Args:
        head: The head.

    Raises:
        ConfigError: If the head predicts otherwise or if its test_cfg is not supported.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.settings = head.test_cfg
        self.is_proposal_head = isinstance(head, RPNHead)
        base = RPNHead if self.is_proposal_head else BaseDenseHead
        methods = '_predict_by_feat_single', '_bbox_post_process'
        supported = (
            isinstance(head, AnchorHead)
            and inherits(head, BaseDenseHead, 'predict', 'predict_by_feat')
            and inherits(head, base, *methods)
            and not getattr(head.loss_cls, 'custom_cls_channels', False)
        )
        require(supported, head, 'a head with the prediction of ATSSHead, RetinaHead or RPNHead')
        check_coder(head)
        check_nms(self.settings.get('nms'))

    def predict(
        self, features: Sequence[Tensor], height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict boxes from the maps (B, C, H_i, W_i) of the neck.

        Returns:
            Boxes (B, N, 4), scores (B, N), 0 for boxes that are no detections, and labels (B, N).
        """
        logits, deltas, *quality = self.head(features)
        sizes = [level.shape[-2:] for level in logits]
        anchors = self.head.prior_generator.grid_priors(sizes, torch.float32, logits[0].device)
        levels = zip(anchors, logits, deltas, *quality, strict=True)
        found = [self._candidates(i, *level) for i, level in enumerate(levels)]
        anchors, deltas, scores, labels = (
            torch.cat(parts, 1) for parts in zip(*found, strict=True)
        )
        boxes = decode(self.head.bbox_coder, anchors, deltas, height, width).squeeze(2)
        scores = self._remove_small(boxes, scores)
        count = self.settings.max_per_img
        return boxes, suppress(boxes, scores, labels, self.settings.nms, count), labels

    def _candidates(
        self, level: int, anchors: Tensor, logits: Tensor, deltas: Tensor, quality: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best boxes of a level: anchors and deltas (B, K, 4), scores and labels (B, K)."""
        scores = activation(self.head)(_by_anchor(logits, self.head.cls_out_channels).float())
        classes = scores.shape[-1]
        scores = scores.flatten(1)
        count = scores.shape[1]
        if self.settings.get('nms_pre', 0) > 0:
            count = torch.sym_min(self.settings.nms_pre, count)
        scores, index = scores.topk(count)
        place = index // classes
        valid = scores > self.settings.get('score_thr', 0)
        if quality is not None:
            scores = scores * take(quality.permute(0, 2, 3, 1).flatten(1).float().sigmoid(), place)
        scores = torch.where(valid, scores, 0.0)
        # Proposals of different levels do not suppress each other.
        labels = torch.full_like(index, level) if self.is_proposal_head else index % classes
        return anchors[place], take(_by_anchor(deltas, 4), place), scores, labels

    def _remove_small(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Set the scores of boxes below ``min_bbox_size`` to 0."""
        size = self.settings.get('min_bbox_size', -1)
        if size < 0:
            return scores
        smaller_side = (boxes[..., 2:] - boxes[..., :2]).amin(-1)
        return torch.where(smaller_side > size, scores, 0.0)


def extract_features(model: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Maps of a detector's neck for images (B, 3, H, W), in the dtype of the weights."""
    return model.extract_feat(images.to(weight_dtype(model)))


def _by_anchor(maps: Tensor, channels: int) -> Tensor:
    """(B, anchors * channels, H, W) -> (B, H * W * anchors, channels)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, channels)
