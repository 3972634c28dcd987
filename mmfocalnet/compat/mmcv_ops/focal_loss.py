"""Sigmoid and softmax focal loss, with the signatures of `mmcv._ext`.

mmdet and mmseg call the sigmoid loss on GPUs only; on the CPU they have a Python implementation.
Half precision computes in float32. The results equal the compiled op's, except for the sigmoid loss
of a wrong class with a float32 logit above 17, for which the compiled op always returns the loss of
a logit of 87.

Let q be the probability of being wrong and 1 - q that of being right. The loss is
-scale * q**gamma * log(1 - q), with the derivative
scale * q**gamma * (gamma * (1 - q) * log(1 - q) - q) with respect to a logit of being right, z.

Sigmoid: every class is a separate question, with q = sigmoid(-z), where z is the logit x for the
class of the target and -x for any other class.
Softmax: 1 - q is the softmax p_t of the target t, whose derivative with respect to logit j is
p_t * ([j = t] - p_j).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider

_TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the sigmoid focal loss of every class.

    Args:
        input: Logits (N, C) of any float dtype.
        target: Class indices (int64), shape (N,). C or a negative index is background: no class
            of that row is right.
        weight: Weights (C,) of a row by its target, 1 for background; empty for none.
        output: Filled with the losses (N, C).
        gamma: Exponent of the probability of being wrong.
        alpha: Factor of the right class; the factor of any other class is 1 - alpha.

    Raises:
        ValueError: If a target is above C.
    """
    log_ops_provider()
    # As the compiled op does: such a target would count as background otherwise.
    if len(target) and target.max() > input.shape[1]:
        raise ValueError(
            f'sigmoid_focal_loss: a target is {target.max()}, expected at most {input.shape[1]}, '
            'the number of classes'
        )
    sign, scale = _sign_and_scale(input, target, weight, alpha)
    z = sign * input
    output.copy_(-scale * torch.sigmoid(-z).pow(gamma) * F.logsigmoid(z))


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `grad_input` (N, C) with the derivative of each loss with respect to its logit.

    The other arguments are those of `sigmoid_focal_loss_forward`.
    """
    sign, scale = _sign_and_scale(input, target, weight, alpha)
    z = sign * input
    wrong = torch.sigmoid(-z)
    slope = gamma * torch.sigmoid(z) * F.logsigmoid(z) - wrong
    grad_input.copy_(sign * scale * wrong.pow(gamma) * slope)


@torch.no_grad()
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the softmax focal loss of every row.

    Args:
        input: Softmax of the logits (N, C), any float dtype.
        target: Class indices (int64), shape (N,). The loss of a negative index is 0.
        weight: Weights (C,) of a row by its target; empty for none.
        output: Filled with the losses (N,).
        gamma: Exponent of the probability of being wrong.
        alpha: Factor of the loss.

    Raises:
        ValueError: If a target is not below C.
    """
    log_ops_provider()
    # The compiled op reads beyond the end of the row.
    if len(target) and target.max() >= input.shape[1]:
        raise ValueError(
            f'softmax_focal_loss: a target is {target.max()}, expected less than '
            f'{input.shape[1]}, the number of classes'
        )
    right, scale = _right_and_scale(input, target, weight, alpha)
    output.copy_(-scale * (1 - right).pow(gamma) * right.log())


@torch.no_grad()
def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fill `grad_input` (N, C) with the derivative of each loss with respect to the logits.

    `buff` is a buffer of the compiled op and not used. The other arguments are those of
    `softmax_focal_loss_forward`.
    """
    right, scale = _right_and_scale(input, target, weight, alpha)
    wrong = (1 - right).clamp(min=_TINY)  # 0 to a negative power is infinite
    slope = gamma * right * wrong.pow(gamma - 1) * right.log() - wrong.pow(gamma)
    one_hot = target[:, None] == torch.arange(input.shape[1], device=target.device)
    grad_input.copy_((scale * slope)[:, None] * (one_hot.to(slope.dtype) - input))


def _right_and_scale(
    softmax: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The probability (N,) of the target and the scale of the loss, 0 for negative targets."""
    dtype, index = compute_dtype(softmax), target.clamp(min=0)
    scale = alpha * (target >= 0).to(dtype)
    if weight.numel():
        scale = scale * weight.to(dtype)[index]
    return softmax.to(dtype).gather(1, index[:, None])[:, 0].clamp(min=_TINY), scale


def _sign_and_scale(
    input: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The sign of each logit (N, C), 1 for the class of the target, and the scale of each loss."""
    dtype, classes = compute_dtype(input), input.shape[1]
    right = (target[:, None] == torch.arange(classes, device=target.device)).to(dtype)
    scale = right * alpha + (1 - right) * (1 - alpha)
    if weight.numel():
        # The compiled op reads the weight of background beyond the end of the weights.
        weight = F.pad(weight.to(dtype), (0, 1), value=1)
        scale = scale * weight[target.where(target >= 0, classes)][:, None]
    return 2 * right - 1, scale
