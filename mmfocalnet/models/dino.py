"""mmdet's DINO (https://arxiv.org/abs/2203.03605) with the numbers of the published detectors.

Configs import this module by ``custom_imports``, because ``import mmfocalnet`` does not import
mmdet.
"""

from __future__ import annotations

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import DINOHead
from mmdet.models.detectors import DINO
from mmdet.models.layers import MLP, inverse_sigmoid
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmfocalnet.registry import register


class ReferencePointHead(MLP):
    """MLP from an encoded reference box to the position of its query.

    It takes C / 2 features per coordinate, 128 in the published detectors. The decoder encodes C
    features in onedl-mmdetection and always 128 in mmdet. If these are n times as many, every n-th
    sine-cosine pair equals a pair of the C / 2 features.
    """

    def forward(self, encoding: Tensor) -> Tensor:
        """Map (B, Q, n * 2C) to (B, Q, C)."""
        n = encoding.shape[-1] // self.layers[0].in_features
        return super().forward(encoding.unflatten(-1, (-1, n, 2))[..., 0, :].flatten(-2))


class FullPrecisionLinear(nn.Linear):
    """Linear layer that autocast does not run in half precision."""

    @classmethod
    def like(cls, layer: nn.Linear) -> FullPrecisionLinear:
        """Make such a layer with the weights of another."""
        copy = cls(layer.in_features, layer.out_features, device=layer.weight.device)
        copy.weight, copy.bias = layer.weight, layer.bias
        return copy

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C_in) to (..., C_out) in the dtype of the weights."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


@register(MODELS)
class PublishedDINO(DINO):
    """mmdet's ``DINO`` for the published weights, with the same arguments.

    Its ``decoder.ref_point_head`` has the published shape on both stacks. With mixed precision, the
    deformable attention samples in float32.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        channels = self.embed_dims
        self.decoder.ref_point_head = ReferencePointHead(2 * channels, channels, channels, 2)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                # Half precision is too coarse for positions in a feature map.
                module.sampling_offsets = FullPrecisionLinear.like(module.sampling_offsets)
                module.value_proj = FullPrecisionLinear.like(module.value_proj)


@register(MODELS)
class PublishedDINOHead(DINOHead):
    """mmdet's ``DINOHead``, with the limit of the published code for boxes at the border."""

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As of ``DINOHead``, with reference boxes limited to the range 0.001 to 0.999."""
        limited = [inverse_sigmoid(reference, eps=1e-3).sigmoid() for reference in references]
        return super().forward(hidden_states, limited)
