"""The pixel decoder of Mask2Former in plain operators with symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.layers import MSDeformAttnPixelDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.deployment.deformable_attention import attend


class PixelDecoder(nn.Module):
    """Compute what mmdet's ``MSDeformAttnPixelDecoder`` computes, with its layers.

    Args:
        source: The pixel decoder; its position encoding is replaced.
        grid_sample: Whether deformable attention uses `torch.nn.functional.grid_sample`;
            otherwise it gathers pixels.
    """

    def __init__(self, source: MSDeformAttnPixelDecoder, grid_sample: bool) -> None:
        super().__init__()
        self.source = source
        source.postional_encoding = PositionEncoding(source.postional_encoding)  # mmdet's spelling
        self.grid_sample = grid_sample

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode maps (B, C_i, H_i, W_i), the largest first.

        Returns:
            The features of the masks (B, C, H_0, W_0), and the maps of the transformer decoder,
            the smallest first.
        """
        source = self.source
        levels = source.num_encoder_levels
        maps = [
            conv(level)
            for conv, level in zip(source.input_convs, reversed(features[-levels:]), strict=True)
        ]
        outs = self._encode(maps)
        for i in reversed(range(source.num_input_levels - levels)):
            lateral = source.lateral_convs[i](features[i])
            size = lateral.shape[-2:]
            above = F.interpolate(outs[-1], size=size, mode='bilinear', align_corners=False)
            outs.append(source.output_convs[i](lateral + above))
        return source.mask_feature(outs[-1]), outs[: source.num_outs]

    def _encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Run the encoder on the tokens of all maps (B, C, H_i, W_i)."""
        source = self.source
        sizes = [level.shape[-2:] for level in maps]
        tokens = torch.cat([_to_tokens(level) for level in maps], 1)
        positions = []
        for level, embedding in zip(maps, source.level_encoding.weight, strict=True):
            mask = torch.zeros(1, *level.shape[-2:], dtype=torch.bool, device=level.device)
            positions.append(_to_tokens(source.postional_encoding(mask)) + embedding)
        position = torch.cat(positions, 1)
        points = torch.cat([_centers(size, tokens.device) for size in sizes])[None, :, None]
        for layer in source.encoder.layers:
            query = tokens + position
            tokens = tokens + attend(
                layer.self_attn, query, tokens, points, sizes, grid_sample=self.grid_sample
            )
            tokens = layer.norms[1](layer.ffn(layer.norms[0](tokens)))
        parts = tokens.transpose(1, 2).split([height * width for height, width in sizes], 2)
        return [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


class PositionEncoding(nn.Module):
    """A position encoding whose result has the type of the weights around it.

    Args:
        source: The position encoding, which computes in float32.
    """

    weight: Tensor

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.register_buffer('weight', torch.empty(0))

    def forward(self, mask: Tensor) -> Tensor:
        """Encode the positions of a mask (B, H, W)."""
        return self.source(mask).to(self.weight.dtype)


def _to_tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return features.flatten(2).transpose(1, 2)


def _centers(size: tuple[int, int], device: torch.device) -> Tensor:
    """Centers (x, y) of the pixels of a map, from 0 to 1, (H * W, 2)."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in size)
    return torch.stack(torch.broadcast_tensors(x, y[:, None]), -1).flatten(0, 1)
