"""Multi-scale deformable attention of Mask2Former and DINO, with bounded memory.

It replaces mmcv's Python implementation, which mmcv runs on the CPU, and has the signatures of
`mmcv._ext`, which mmcv calls on GPUs. Half precision, bfloat16 included, computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider

MAX_SAMPLES = 2**25
"""Maximum number of values that are sampled at a time: 128 MB in float32."""


def multi_scale_deformable_attn(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample feature maps and sum the samples by attention weights, some queries at a time.

    Only the inputs are kept for the backward pass, which samples again.

    Args:
        value: Values (B, S, heads, C) of any float dtype, the L levels one after another.
        value_spatial_shapes: Height and width of each level, shape (L, 2).
        sampling_locations: Where Q queries take P samples of each level, (x, y) from 0 to 1 over
            the map, shape (B, Q, heads, L, P, 2).
        attention_weights: Shape (B, Q, heads, L, P).

    Returns:
        Weighted sums of the samples, shape (B, Q, heads * C), in the dtype of `value`.

    Raises:
        RuntimeError: If the sizes of the levels do not sum to S.
    """
    if isinstance(value_spatial_shapes, Tensor):
        # At once, because reading each number from a tensor would synchronize the GPU.
        value_spatial_shapes = value_spatial_shapes.tolist()
    dtype = compute_dtype(value)
    with torch.autocast(value.device.type, enabled=False):
        maps = _split_levels(value.to(dtype), value_spatial_shapes)
        rest = sampling_locations.to(dtype), attention_weights.to(dtype)
        return _attend(maps, *rest).to(value.dtype)


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """As `multi_scale_deformable_attn`; the third and the last argument are not used."""
    log_ops_provider()
    return multi_scale_deformable_attn(
        value, value_spatial_shapes, sampling_locations, attention_weights
    )


@torch.no_grad()
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Run `ms_deform_attn_forward` again and fill the gradients of its three float inputs.

    `grad_output` (B, Q, heads * C) is the gradient of its output; `grad_value`,
    `grad_sampling_loc` and `grad_attn_weight` have the shapes of the inputs.
    """
    dtype = compute_dtype(value)
    inputs = [
        tensor.detach().to(dtype).requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = multi_scale_deformable_attn(inputs[0], value_spatial_shapes, *inputs[1:])
    grads = torch.autograd.grad(output, inputs, grad_output.to(dtype))
    outputs = (grad_value, grad_sampling_loc, grad_attn_weight)
    for filled, grad in zip(outputs, grads, strict=True):
        filled.copy_(grad)


def _split_levels(value: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Split values (B, S, heads, C) into a map (B * heads, C, H, W) for each level."""
    levels = value.split([height * width for height, width in shapes], dim=1)
    return [
        level.permute(0, 2, 3, 1).reshape(-1, value.shape[3], *shape)
        for level, shape in zip(levels, shapes, strict=True)
    ]


def _attend(maps: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    queries = weights.shape[1]
    samples_per_query = weights[:, :1].numel() * maps[0].shape[1]
    step = max(1, MAX_SAMPLES // max(1, samples_per_query))
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        step = max(1, queries)
    run = _sample
    if torch.is_grad_enabled() and queries > step:
        run = partial(checkpoint, _sample, use_reentrant=False, preserve_rng_state=False)
    chunks = zip(locations.split(step, dim=1), weights.split(step, dim=1), strict=True)
    return torch.cat([run(*chunk, *maps) for chunk in chunks], dim=1)


def _sample(locations: Tensor, weights: Tensor, *maps: Tensor) -> Tensor:
    """Weighted sums (B, Q, heads * C) of the samples of all maps."""
    batch, queries, heads = weights.shape[:3]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B * heads, Q, L, P, 2]
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # [B * heads, 1, Q, L, P]
    total = maps[0].new_zeros(batch * heads, maps[0].shape[1], queries)
    for level, values in enumerate(maps):
        samples = F.grid_sample(values, grids[:, :, level], align_corners=False)
        total = total + (samples * weights[:, :, :, level]).sum(-1)
    return total.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
