"""Deformable attention for exported models, with symbolic sizes of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.deployment.operators import deformable_attention


def attend(
    layer: MultiScaleDeformableAttention,
    query: Tensor,
    tokens: Tensor,
    references: Tensor,
    sizes: Sequence[tuple[int, int]],
    padding: Tensor | None = None,
    grid_sample: bool = True,
) -> Tensor:
    """Compute deformable attention without its residual branch.

    Args:
        layer: The layer whose weights are used.
        query: Queries with their positions (B, Q, C).
        tokens: Tokens of the L maps (B, S, C).
        references: Points (B, Q, L, 2) or boxes (B, Q, L, 4), from 0 to 1.
        sizes: Heights and widths of the maps.
        padding: Which tokens are padding (B, S). Defaults to none.
        grid_sample: As for `deformable_attention`. Defaults to True.

    Returns:
        Shape (B, Q, C).
    """
    heads, points = layer.num_heads, layer.num_points
    # Sampling in float32: its coordinates are in pixels.
    value = F.linear(tokens, layer.value_proj.weight, layer.value_proj.bias).float()
    if padding is not None:
        value = value.masked_fill(padding.unsqueeze(-1), 0)
    value = value.unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
    parts = value.split([height * width for height, width in sizes], dim=2)
    maps = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
    weights = layer.attention_weights(query).float().unflatten(2, (heads, -1)).softmax(-1)
    weights = weights.unflatten(3, (-1, points))
    offsets = F.linear(query, layer.sampling_offsets.weight, layer.sampling_offsets.bias)
    offsets = offsets.float().unflatten(2, (heads, -1, points, 2))
    references = references[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
    if references.shape[-1] == 4:
        offsets = offsets * references[..., 2:] * (0.5 / points)
    else:
        offsets = offsets / _widths_and_heights(sizes, offsets)[:, None]
    output = deformable_attention(maps, references[..., :2] + offsets, weights, grid_sample)
    return layer.output_proj(output.to(query.dtype))


def _widths_and_heights(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """The sizes (height, width) as a tensor (L, 2) of widths and heights."""
    numbers = [like.new_full((), side) for size in sizes for side in reversed(size)]
    return torch.stack(numbers).unflatten(0, (-1, 2))
