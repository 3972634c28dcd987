"""Two-stage detectors: Faster, Mask and Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from mmfocalnet.deployment.boxes import (
    best,
    check_coder,
    check_nms,
    decode,
    inherits,
    require,
    suppress,
)
from mmfocalnet.deployment.one_stage import DenseHead, extract_features
from mmfocalnet.deployment.operators import multilevel_roi_align


class TwoStageDetector(nn.Module):
    """A detector of mmdet with a region proposal network and the standard or cascade RoI head.

    Args:
        model: The detector.

    Raises:
        ConfigError: If one of its heads or its test_cfg is not supported.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        require(isinstance(model.rpn_head, RPNHead), model.rpn_head, 'RPNHead')
        self.rpn_head = DenseHead(model.rpn_head)
        head = model.roi_head
        supported = type(head) in (StandardRoIHead, CascadeRoIHead) and not head.with_shared_head
        require(supported, head, 'StandardRoIHead or CascadeRoIHead without shared_head')
        self.settings = head.test_cfg
        check_nms(self.settings.get('nms'))
        self.box_stages = _stages(BoxStage, head.bbox_roi_extractor, head.bbox_head)
        self.mask_stages = []
        self.output_names = ('boxes', 'scores', 'labels')
        if head.with_mask:
            self.mask_stages = _stages(MaskStage, head.mask_roi_extractor, head.mask_head)
            self.output_names += ('masks',)

    def forward(self, images: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        """See `mmfocalnet.deployment.detectors.build_detector`."""
        features = extract_features(self.model, images)
        boxes, scores, _ = self.rpn_head.predict(features, height, width)
        scores, boxes = best(scores, self.rpn_head.settings.max_per_img, boxes)
        boxes, scores, labels = self._detect(features, boxes, scores > 0, (height, width))
        scores, boxes, labels = best(scores, self.settings.max_per_img, boxes, labels)
        if not self.mask_stages:
            return boxes, scores, labels
        masks = [stage.masks(features, boxes, labels) for stage in self.mask_stages]
        masks = sum(masks) / len(masks)
        return boxes, scores, labels, masks * (scores > 0)[..., None, None]

    def _detect(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify and refine proposals (B, P, 4), those of the mask ``valid`` (B, P).

        Returns:
            Boxes (B, N, 4), scores (B, N), 0 for boxes that are no detections, and labels (B, N).
        """
        logits = []
        for stage in self.box_stages:
            stage_logits, deltas = stage.predict(features, boxes)
            logits.append(stage_logits)
            if stage is not self.box_stages[-1]:
                boxes = stage.refine(boxes, stage_logits, deltas, size)
        scores = (sum(logits) / len(logits)).softmax(-1)[..., :-1]
        boxes = stage.decode(boxes, deltas, size).expand(-1, -1, scores.shape[-1], -1)
        labels = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        valid = (scores > self.settings.score_thr) & valid.unsqueeze(-1)
        scores = torch.where(valid, scores, 0.0)
        boxes, scores, labels = (found.flatten(1, 2) for found in (boxes, scores, labels))
        count = self.settings.max_per_img
        return boxes, suppress(boxes, scores, labels, self.settings.nms, count), labels


class RoIStage:
    """A RoI extractor and a head on its features.

    Args:
        extractor: The extractor.
        head: The head.

    Raises:
        ConfigError: If one of them is not supported.
    """

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        needed = 'SingleRoIExtractor with aligned RoIAlign'
        layers = extractor.roi_layers
        require(type(extractor) is SingleRoIExtractor, extractor, needed)
        require(all(map(_is_aligned_average, layers)), layers[0], needed)
        self.extractor = extractor
        self.head = head

    def run_head(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Run the head on the features of boxes (B, P, 4), as a batch of B * P RoIs."""
        layers = self.extractor.roi_layers
        images = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
        images = images[:, None, None].expand(-1, boxes.shape[1], -1)
        pooled = multilevel_roi_align(
            [level.float() for level in features[: len(layers)]],
            torch.cat([images, boxes], -1).flatten(0, 1),
            self._levels(boxes).flatten(),
            layers[0].output_size,
            [layer.spatial_scale for layer in layers],
            layers[0].sampling_ratio,
        )
        return self.head(pooled.to(features[0].dtype))

    def _levels(self, boxes: Tensor) -> Tensor:
        """Index of the map for boxes (B, P, 4), by their size; as mmdet, without a logarithm.

        A runtime's logarithm may be below the integer for a size at the limit of two levels.
        """
        size = (boxes[..., 2:] - boxes[..., :2]).prod(-1).sqrt() / self.extractor.finest_scale
        limits = range(1, len(self.extractor.roi_layers))
        return sum([(size + 1e-6 >= 2**i).long() for i in limits], torch.zeros_like(size).long())


class BoxStage(RoIStage):
    """A stage that classifies and refines boxes."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__(extractor, head)
        supported = (
            inherits(head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single')
            and inherits(head, BBoxHead, 'regress_by_class')
            and head.with_cls
            and head.with_reg
            and not head.custom_activation
            and not head.custom_cls_channels
        )
        require(supported, head, 'a head with the prediction of BBoxHead')
        check_coder(head)

    def predict(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict logits (B, P, C + 1) and deltas (B, P, 4) or (B, P, 4 * C) of boxes (B, P, 4)."""
        logits, deltas = self.run_head(features, boxes)
        size = boxes.shape[:2]
        return logits.float().unflatten(0, size), deltas.float().unflatten(0, size)

    def refine(
        self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Apply the deltas of the best class; boxes (B, P, 4)."""
        if not self.head.reg_class_agnostic:
            labels = logits[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
            deltas = deltas.unflatten(-1, (-1, 4)).gather(2, labels).squeeze(2)
        return self.decode(boxes, deltas, size).squeeze(2)

    def decode(self, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """Apply all deltas; boxes (B, P, C or 1, 4)."""
        return decode(self.head.bbox_coder, boxes, deltas, *size)


class MaskStage(RoIStage):
    """A stage that segments boxes."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__(extractor, head)
        supported = inherits(head, FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single')
        require(supported, head, 'a head with the prediction of FCNMaskHead')

    def masks(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (B, K, h, w) of the labels (B, K) in boxes (B, K, 4)."""
        logits = self.run_head(features, boxes)
        index = torch.arange(logits.shape[0], device=logits.device)
        chosen = logits[:, 0] if self.head.class_agnostic else logits[index, labels.flatten()]
        return chosen.float().sigmoid().unflatten(0, labels.shape)


def _stages(kind: type[RoIStage], extractors: nn.Module, heads: nn.Module) -> list[RoIStage]:
    """Stages of one or several extractors and heads."""
    if not isinstance(heads, nn.ModuleList):
        extractors, heads = [extractors], [heads]
    return [kind(*parts) for parts in zip(extractors, heads, strict=True)]


def _is_aligned_average(layer: nn.Module) -> bool:
    return isinstance(layer, RoIAlign) and layer.aligned and layer.pool_mode == 'avg'
