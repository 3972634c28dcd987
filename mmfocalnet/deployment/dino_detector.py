"""DINO with deformable attention in plain operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import DeformableDETRHead, DINOHead
from mmdet.models.dense_heads.detr_head import DETRHead
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.models.layers import coordinate_to_encoding, inverse_sigmoid
from mmdet.models.layers.transformer import DeformableDetrTransformerEncoder, DinoTransformerDecoder
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn

from mmfocalnet.deployment.boxes import inherits, limit, require, take
from mmfocalnet.deployment.deformable_attention import attend
from mmfocalnet.deployment.one_stage import extract_features
from mmfocalnet.models.dino import PublishedDINOHead


class _Levels(NamedTuple):
    """The levels of a batch whose images all have the same padding.

    Args:
        sizes: Heights and widths of the L levels.
        masks: Masks (1, H_i, W_i) that are True in the padding.
        padding: The masks of all levels for each image, shape (B, S).
        valid_ratios: Shares of width and height without padding, shape (1, L, 2).
        points: Centers (x, y) of the positions, from 0 to 1 without padding, shape (1, S, 2).
    """

    sizes: list[tuple[int, int]]
    masks: list[Tensor]
    padding: Tensor
    valid_ratios: Tensor
    points: Tensor


class DINODetector(nn.Module):
    """mmdet's DINO or ``PublishedDINO``.

    Args:
        model: The detector.
        grid_sample: Sample by `torch.nn.functional.grid_sample` instead of gathering pixels.

    Raises:
        ConfigError: If a part of the model is not supported.
    """

    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module, grid_sample: bool) -> None:
        super().__init__()
        _check(model)
        self.model = model
        self.grid_sample = grid_sample

    def forward(self, images: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `mmfocalnet.deployment.detectors.build_detector`."""
        features = extract_features(self.model, images)
        levels = _describe(features, images.shape[2:], (height, width))
        memory = self._encode(features, levels)
        references = self._propose(memory, levels)
        query = self.model.query_embedding.weight.expand(images.shape[0], -1, -1)
        logits, boxes = self._decode(query, references, memory, levels)
        return self._select(logits, boxes, height, width)

    def _encode(self, features: Sequence[Tensor], levels: _Levels) -> Tensor:
        """Run the encoder on the maps (B, C, H_i, W_i); tokens (B, S, C)."""
        model = self.model
        tokens = torch.cat([level.flatten(2) for level in features], 2).transpose(1, 2)
        positions = [
            (model.positional_encoding(mask).flatten(2) + embedding[:, None]).transpose(1, 2)
            for mask, embedding in zip(levels.masks, model.level_embed, strict=True)
        ]
        positions = torch.cat(positions, 1).to(tokens.dtype)
        references = levels.points[:, :, None] * levels.valid_ratios[:, None]
        for layer in model.encoder.layers:
            query = tokens + positions
            tokens = tokens + self._attend(layer.self_attn, query, tokens, references, levels)
            tokens = layer.norms[1](layer.ffn(layer.norms[0](tokens)))
        return tokens

    def _propose(self, memory: Tensor, levels: _Levels) -> Tensor:
        """Boxes (B, Q, 4) of the tokens (B, S, C) with the best scores, from 0 to 1."""
        model = self.model
        layer = len(model.decoder.layers)
        sides = [
            torch.full((1, height * width, 2), 0.05 * 2**i, device=memory.device)
            for i, (height, width) in enumerate(levels.sizes)
        ]
        boxes = torch.cat([levels.points, torch.cat(sides, 1)], -1)
        ignored = ((boxes <= 0.01) | (boxes >= 0.99)).any(-1) | levels.padding
        tokens = model.memory_trans_fc(memory.masked_fill(ignored.unsqueeze(-1), 0))
        tokens = model.memory_trans_norm(tokens)
        scores = model.bbox_head.cls_branches[layer](tokens).amax(-1)
        index = scores.topk(model.num_queries).indices
        logits = (boxes / (1 - boxes)).log()
        logits = torch.where(ignored.unsqueeze(-1), torch.inf, logits)
        offsets = model.bbox_head.reg_branches[layer](take(tokens, index)).float()
        return (offsets + take(logits, index)).sigmoid()

    def _decode(
        self, query: Tensor, references: Tensor, memory: Tensor, levels: _Levels
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder on the queries (B, Q, C) and their boxes (B, Q, 4), from 0 to 1.

        Returns:
            Logits (B, Q, classes) and boxes (B, Q, 4), center and size from 0 to 1, float32.
        """
        decoder, head = self.model.decoder, self.model.bbox_head
        encoding = decoder.ref_point_head.layers[0].in_features // 4  # features per coordinate
        ratios = torch.cat([levels.valid_ratios, levels.valid_ratios], -1)[:, None]
        for i, layer in enumerate(decoder.layers):
            if i > 0:
                offsets = head.reg_branches[i - 1](query).float()
                references = (offsets + inverse_sigmoid(references, eps=1e-3)).sigmoid()
            scaled = references[:, :, None] * ratios
            position = coordinate_to_encoding(scaled[:, :, 0], num_feats=encoding)
            position = decoder.ref_point_head(position.to(query.dtype))
            query = layer.self_attn(query, query_pos=position, key_pos=position)
            query = layer.norms[0](query)
            found = self._attend(layer.cross_attn, query + position, memory, scaled, levels)
            query = layer.norms[2](layer.ffn(layer.norms[1](query + found)))
        # mmdet's heads limit the references to 1e-5, the published ones to 1e-3.
        eps = 1e-3 if isinstance(head, PublishedDINOHead) else 1e-5
        query = decoder.norm(query)
        last = len(decoder.layers) - 1
        offsets = head.reg_branches[last](query).float()
        boxes = (offsets + inverse_sigmoid(references, eps=eps)).sigmoid()
        return head.cls_branches[last](query).float(), boxes

    def _attend(
        self,
        layer: MultiScaleDeformableAttention,
        query: Tensor,
        memory: Tensor,
        references: Tensor,
        levels: _Levels,
    ) -> Tensor:
        return attend(
            layer, query, memory, references, levels.sizes, levels.padding, self.grid_sample
        )

    def _select(
        self, logits: Tensor, boxes: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the best boxes of all classes."""
        count = self.model.bbox_head.test_cfg.get('max_per_img', boxes.shape[1])
        scores, index = logits.sigmoid().flatten(1).topk(count)
        classes = logits.shape[-1]
        boxes = bbox_cxcywh_to_xyxy(take(boxes, index // classes))
        x, y = boxes.unflatten(-1, (2, 2)).unbind(-1)
        boxes = torch.stack([x * width, y * height], -1).flatten(-2)
        return limit(boxes, height, width), scores, index % classes


def _describe(
    features: Sequence[Tensor], padded_size: tuple[int, int], size: tuple[int, int]
) -> _Levels:
    """Describe the maps of images of a size (height, width) that are padded to another one."""
    sizes = [level.shape[2:] for level in features]
    batch, device = features[0].shape[0], features[0].device
    masks, ratios, points = [], [], []
    for level_size in sizes:
        # A position is padding if the pixel that nearest interpolation takes for it is.
        rows, columns = (
            torch.arange(count, device=device) * padded // count >= valid
            for count, padded, valid in zip(level_size, padded_size, size, strict=True)
        )
        masks.append((rows[:, None] | columns).unsqueeze(0))
        ratios.append(torch.stack([(~columns).float().mean(), (~rows).float().mean()]))
        y, x = torch.meshgrid(_centers(rows), _centers(columns), indexing='ij')
        points.append(torch.stack([x, y], -1).flatten(0, 1))
    padding = torch.cat([mask.flatten(1) for mask in masks], 1).expand(batch, -1)
    ratios, points = torch.stack(ratios).unsqueeze(0), torch.cat(points).unsqueeze(0)
    return _Levels(sizes, masks, padding, ratios, points)


def _centers(padding: Tensor) -> Tensor:
    """Centers of the positions of a mask (N,), relative to those without padding."""
    return (torch.arange(padding.shape[0], device=padding.device) + 0.5) / (~padding).sum()


def _check(model: nn.Module) -> None:
    """Raise ConfigError unless `DINODetector` computes what the model computes."""
    detector_methods = 'pre_decoder', 'forward_decoder', 'forward_transformer'
    encoder_methods = 'pre_transformer', 'forward_encoder', 'gen_encoder_output_proposals'
    supported = inherits(model, DINO, *detector_methods) and inherits(
        model, DeformableDETR, *encoder_methods
    )
    require(supported, model, 'DINO')
    encoder = DeformableDetrTransformerEncoder
    require(inherits(model.encoder, encoder, 'forward'), model.encoder, encoder.__name__)
    decoder = DinoTransformerDecoder
    require(inherits(model.decoder, decoder, 'forward'), model.decoder, decoder.__name__)
    head = model.bbox_head
    supported = (
        inherits(head, DINOHead)
        and inherits(head, DeformableDETRHead, 'predict', 'predict_by_feat')
        and inherits(head, DETRHead, '_predict_by_feat_single')
        and type(head).forward in (DeformableDETRHead.forward, PublishedDINOHead.forward)
        and head.loss_cls.use_sigmoid
    )
    require(supported, head, 'DINOHead with the activation sigmoid')
