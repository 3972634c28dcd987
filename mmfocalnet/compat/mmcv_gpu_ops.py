"""The two ops of mmcv that are called on GPUs only, in plain PyTorch for any device.

These are sigmoid focal loss, for ATSS and Sparse R-CNN, and multi-scale deformable attention, for
Mask2Former. On the CPU mmdet and mmcv have Python of their own for both and call no op, so that a
missing one shows only on a GPU. Names, arguments and filled outputs are those of `mmcv._ext`.

Half precision, bfloat16 included, computes in float32. Otherwise the results are those of the
compiled ops with one exception: the focal loss of a wrong class keeps growing with its logit,
where the compiled one, from a float32 logit of 17 on, gives that of a logit of 87.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops import compute_dtype, log_ops_provider

# ------------------------------------------------------------------------------------------------
# Sigmoid focal loss
#
# With z the logit of being right, x for the class of the target and -x for any other, and q the
# probability of being wrong, sigmoid(-z), both cases are -scale * q**gamma * log(1 - q), whose
# derivative by z is scale * q**gamma * (gamma * (1 - q) * log(1 - q) - q).
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss of every class, with the signature of mmcv's own; fills `output`.

    Args:
        input (Tensor): Logits (N, C) of any float dtype.
        target (Tensor): Class indices (int64), shape (N,). C, or anything negative, is background:
            no class of that row is right.
        weight (Tensor): Weights (C,) of a row by its target, 1 for background; or empty, for none.
        output (Tensor): Filled with the losses (N, C).
        gamma (float): Exponent of the probability of being wrong.
        alpha (float): Factor of the right class; any other has 1 - alpha.

    Raises:
        ValueError: A target is above C.
    """
    log_ops_provider()
    # As the compiled op does: a label that no class has would count as background unnoticed.
    if len(target) and target.max() > input.shape[1]:
        raise ValueError(f'a target is {target.max()}, but there are {input.shape[1]} classes.')
    sign, scale = _sign_and_scale(input, target, weight, alpha)
    z = sign * input
    output.copy_(-scale * torch.sigmoid(-z).pow(gamma) * F.logsigmoid(z))


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of `sigmoid_focal_loss_forward`, with mmcv's signature; fills `grad_input`.

    Args:
        input (Tensor): As in the forward pass, shape (N, C).
        target (Tensor): As in the forward pass, shape (N,).
        weight (Tensor): As in the forward pass, shape (C,) or empty.
        grad_input (Tensor): Filled with the derivative of each loss by its logit, shape (N, C).
        gamma (float): As in the forward pass.
        alpha (float): As in the forward pass.
    """
    sign, scale = _sign_and_scale(input, target, weight, alpha)
    z = sign * input
    wrong = torch.sigmoid(-z)
    slope = gamma * torch.sigmoid(z) * F.logsigmoid(z) - wrong
    grad_input.copy_(sign * scale * wrong.pow(gamma) * slope)


def _sign_and_scale(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """What each logit (N, C) is multiplied by, 1 or -1, and each loss; both (N, C)."""
    dtype, classes = compute_dtype(input), input.shape[1]
    right = (target[:, None] == torch.arange(classes, device=target.device)).to(dtype)
    scale = right * alpha + (1 - right) * (1 - alpha)
    if weight.numel():
        # The compiled op looks for the weight of background outside of the weights.
        weight = F.pad(weight.to(dtype), (0, 1), value=1)
        scale = scale * weight[target.where(target >= 0, classes)][:, None]
    return 2 * right - 1, scale


# ------------------------------------------------------------------------------------------------
# Multi-scale deformable attention
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention through mmcv's PyTorch code, with its op's signature.

    Args:
        value (Tensor): Values (B, S, heads, C) of any float dtype, the L levels one after another.
        value_spatial_shapes (Tensor): Height and width (int64) of each level, shape (L, 2).
        value_level_start_index (Tensor): Not used, as it follows from the shapes; (L,).
        sampling_locations (Tensor): Where Q queries take P samples of each level, (x, y) from 0 to
            1 over the map, shape (B, Q, heads, L, P, 2).
        attention_weights (Tensor): Shape (B, Q, heads, L, P).
        im2col_step (int): Not used: the compiled op's number of images at once.

    Returns:
        Tensor: Weighted sums of the samples, shape (B, Q, heads * C), in the dtype of `value`.

    Raises:
        RuntimeError: The shapes do not sum to S.
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
    """Gradients of `ms_deform_attn_forward`, which is computed again; fills its three outputs.

    Args:
        value (Tensor): As in the forward pass, shape (B, S, heads, C).
        value_spatial_shapes (Tensor): As in the forward pass, shape (L, 2).
        value_level_start_index (Tensor): Not used.
        sampling_locations (Tensor): As in the forward pass, shape (B, Q, heads, L, P, 2).
        attention_weights (Tensor): As in the forward pass, shape (B, Q, heads, L, P).
        grad_output (Tensor): Gradient of the attention, shape (B, Q, heads * C).
        grad_value (Tensor): Filled with the gradient of `value`.
        grad_sampling_loc (Tensor): Filled with the gradient of `sampling_locations`.
        grad_attn_weight (Tensor): Filled with the gradient of `attention_weights`.
        im2col_step (int): Not used.
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
    # Imported late: mmcv.ops imports the stand-in that brings this module.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # As a list, because a GPU would stop for each number that is read from a tensor.
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
