"""Multi-scale deformable attention of DINO and Mask2Former in memory of limited size.

`multi_scale_deformable_attn` replaces mmcv's Python function, which mmcv calls on the CPU and, in
bfloat16, on GPUs. The other functions have the signatures of `mmcv._ext`, which mmcv calls on GPUs.
All compute half precision, bfloat16 included, in float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from mmfocalnet.compat.mmcv_ops.common import add_gradients, compute_dtype, log_ops_provider
from mmfocalnet.compat.tracing import is_compiling

# Elements of the samples of one level for a chunk of queries. A pass needs memory for two to three
# such tensors at a time. Beyond 32 MB each, glibc maps each anew, and page faults cost time.
_CHUNK_ELEMENTS = 2**22

_Shapes: TypeAlias = Sequence[Sequence[int]]  # height and width of each level


def multi_scale_deformable_attn(
    value: Tensor,
    value_spatial_shapes: Tensor | _Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample feature maps and sum the samples by attention weights.

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
    # Once, because reading each number from a tensor would synchronize the GPU.
    if isinstance(value_spatial_shapes, Tensor):
        value_spatial_shapes = value_spatial_shapes.tolist()
    inputs = (value, sampling_locations, attention_weights)
    if _is_traced():
        with torch.autocast(value.device.type, enabled=False):
            maps = _maps(value, value_spatial_shapes)
            output = _attend(sampling_locations, attention_weights, *maps)
            return output.permute(0, 3, 1, 2).flatten(2).to(value.dtype)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Attention.apply(value_spatial_shapes, *inputs)
    return _forward(value_spatial_shapes, *inputs)


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """As `multi_scale_deformable_attn`.

    `value_level_start_index` (L,), which follows from the shapes, and `im2col_step`, the number of
    images that the compiled op processes at once, are not used.
    """
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
    """Fill the gradients of the three float inputs of `ms_deform_attn_forward`.

    `grad_output` (B, Q, heads * C) is the gradient of its output; `grad_value`,
    `grad_sampling_loc` and `grad_attn_weight` have the shapes of the inputs.
    """
    inputs = (value, sampling_locations, attention_weights)
    grads = (grad_value, grad_sampling_loc.zero_(), grad_attn_weight.zero_())
    _backward(value_spatial_shapes.tolist(), *inputs, grad_output, *grads)


class _Attention(Function):
    """Saves only its inputs; the backward pass samples again."""

    @staticmethod
    def forward(ctx: Any, shapes: _Shapes, *inputs: Tensor) -> Tensor:
        ctx.shapes = shapes
        ctx.save_for_backward(*inputs)
        return _forward(shapes, *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in inputs]
        _backward(ctx.shapes, *inputs, grad_output, *grads)
        return None, *grads


def _is_traced() -> bool:
    """Whether operators become a graph, which should have neither chunks nor custom gradients."""
    return is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _forward(shapes: _Shapes, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """As `multi_scale_deformable_attn`, in chunks."""
    output = value.new_empty(*locations.shape[:2], *value.shape[2:])
    with torch.autocast(value.device.type, enabled=False):
        maps = list(_maps(value, shapes))
        for chunk, *inputs in _chunks(value, output, locations, weights):
            chunk.copy_(_attend(*inputs, *maps).permute(0, 3, 1, 2))
    return output.flatten(2)


def _backward(
    shapes: _Shapes,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
) -> None:
    """Fill the gradient of the values and add those of locations and weights, in chunks."""
    heads, channels = value.shape[2:]
    filled = grad_value.split([height * width for height, width in shapes], dim=1)
    for level, maps in enumerate(_maps(value, shapes)):
        # Single precision for half, because each chunk adds to it.
        grad_maps = torch.zeros_like(maps, memory_format=torch.contiguous_format)
        tensors = (locations, weights, grad_locations, grad_weights)
        tensors = (tensor[:, :, :, level : level + 1] for tensor in tensors)
        for chunk in _chunks(value, grad_output, *tensors):
            grad, *inputs, grad_location, grad_weight = chunk
            grads = (grad_location, grad_weight, grad_maps)
            grad = grad.unflatten(2, (heads, channels)).permute(0, 2, 3, 1).contiguous()
            add_gradients(_attend, (*inputs, maps), grads, grad)
        grad_maps = grad_maps.flatten(2).unflatten(0, (-1, heads))
        filled[level].copy_(grad_maps.permute(0, 3, 1, 2))


def _chunks(value: Tensor, *tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    """The tensors (B, Q, heads, L, P, ...) or (B, Q, ...), split along the queries."""
    points = tensors[1].shape[4]
    elements = points * value.shape[0] * value.shape[2:].numel()
    queries = max(1, _CHUNK_ELEMENTS // max(1, elements))
    return zip(*(tensor.split(queries, dim=1) for tensor in tensors), strict=True)


def _maps(value: Tensor, shapes: _Shapes) -> Iterator[Tensor]:
    """The maps (B * heads, C, H, W) of each level, without a copy for one image in float32."""
    levels = value.split([height * width for height, width in shapes], dim=1)
    for level, shape in zip(levels, shapes, strict=True):
        level = level.to(compute_dtype(value)).permute(0, 2, 3, 1)
        yield level.flatten(0, 1).unflatten(2, tuple(shape))


def _attend(locations: Tensor, weights: Tensor, *maps: Tensor) -> Tensor:
    """Plain differentiable attention of q queries to maps (B * heads, C, H, W).

    Args:
        locations: Shape (B, q, heads, L, P, 2).
        weights: Shape (B, q, heads, L, P).
        maps: Those of the L levels.

    Returns:
        Shape (B, heads, C, q).
    """
    dtype = maps[0].dtype
    # Contiguous and queries last: the operators are several times slower on other layouts.
    grids = (2 * locations.to(dtype) - 1).permute(3, 0, 2, 4, 1, 5).contiguous().flatten(1, 2)
    weights = weights.to(dtype).permute(3, 0, 2, 4, 1).contiguous().flatten(1, 2).unsqueeze(2)
    output = 0
    for level_maps, grid, level_weights in zip(maps, grids.unbind(), weights.unbind(), strict=True):
        samples = F.grid_sample(level_maps, grid, align_corners=False)  # (B * heads, C, P, q)
        output = output + (samples * level_weights).sum(2)
    return output.unflatten(0, locations.shape[:3:2])
