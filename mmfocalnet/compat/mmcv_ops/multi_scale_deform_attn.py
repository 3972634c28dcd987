"""Multi-scale deformable attention of Mask2Former, with the signatures of `mmcv._ext`.

Called on GPUs only; on the CPU mmcv calls its Python implementation, which also runs here. Half
precision, bfloat16 included, computes in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sample feature maps and sum the samples by attention weights.

    Args:
        value: Values (B, S, heads, C) of any float dtype, the L levels one after another.
        value_spatial_shapes: Height and width (int64) of each level, shape (L, 2).
        value_level_start_index: Not used, as it follows from the shapes; (L,).
        sampling_locations: Where Q queries take P samples of each level, (x, y) from 0 to 1 over
            the map, shape (B, Q, heads, L, P, 2).
        attention_weights: Shape (B, Q, heads, L, P).
        im2col_step: Not used: images that the compiled op processes at once.

    Returns:
        Weighted sums of the samples, shape (B, Q, heads * C), in the dtype of `value`.

    Raises:
        RuntimeError: If the sizes of the levels do not sum to S.
    """
    log_ops_provider()
    dtype = compute_dtype(value)
    inputs = (tensor.to(dtype) for tensor in (value, sampling_locations, attention_weights))
    return _attend(value_spatial_shapes, *inputs).to(value.dtype)


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
        output = _attend(value_spatial_shapes, *inputs)
    grads = torch.autograd.grad(output, inputs, grad_output.to(dtype))
    outputs = (grad_value, grad_sampling_loc, grad_attn_weight)
    for filled, grad in zip(outputs, grads, strict=True):
        filled.copy_(grad)


def _attend(shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Imported late: mmcv.ops imports `mmcv._ext`, which this package provides.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # A list, because reading each number from a tensor would synchronize the GPU.
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
