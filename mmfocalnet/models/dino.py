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
from torch.nn import functional as F

from mmfocalnet.registry import register


class ReferencePointHead(MLP):
    """MLP from an encoded reference box to the position of its query.

    It takes C / 2 features per coordinate, 128 in the published detectors. The decoder encodes C in
    onedl-mmdetection and always 128 in mmdet. If these are n times as many, every n-th pair of sine
    and cosine is one of the C / 2.
    """

    def forward(self, encoding: Tensor) -> Tensor:
        """Map (B, Q, n * 2C) to (B, Q, C)."""
        n = encoding.shape[-1] // self.layers[0].in_features
        return super().forward(encoding.unflatten(-1, (-1, n, 2))[..., 0, :].flatten(-2))


@register(MODELS)
class PublishedDINO(DINO):
    """mmdet's ``DINO`` for the published weights, with the same arguments.

    Unlike ``DINO`` of onedl-mmdetection, it has the published number of weights. With mixed
    precision, the deformable attention samples in float32.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        channels = self.embed_dims
        self.decoder.ref_point_head = ReferencePointHead(2 * channels, channels, channels, 2)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                # Half precision is too coarse for positions in a feature map.
                module.sampling_offsets.register_forward_hook(_in_float32)
                module.value_proj.register_forward_hook(_in_float32)


@register(MODELS)
class PublishedDINOHead(DINOHead):
    """mmdet's ``DINOHead``, with the limit of the published code for boxes at the border."""

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As of ``DINOHead``, with reference boxes limited to the range 0.001 to 0.999."""
        limited = [inverse_sigmoid(reference, eps=1e-3).sigmoid() for reference in references]
        return super().forward(hidden_states, limited)


def _in_float32(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Repeat a layer that mixed precision has run in half precision."""
    if output.dtype not in (torch.float16, torch.bfloat16):
        return output
    with torch.autocast(output.device.type, enabled=False):
        return F.linear(inputs[0].float(), layer.weight, layer.bias)
