"""Sigmoid focal loss of ATSS and Sparse R-CNN, with the signatures of `mmcv._ext`.

Called on GPUs only; on the CPU mmdet has a Python implementation. Half precision computes in
float32. The results equal the compiled op's, except for the loss of a wrong class with a float32
logit above 17, for which the compiled op always returns the loss of a logit of 87.

Let z be the logit of being right: x for the class of the target, -x for any other class. With
q = sigmoid(-z), the probability of being wrong, the loss is -scale * q**gamma * log(1 - q). Its
derivative with respect to z is scale * q**gamma * (gamma * (1 - q) * log(1 - q) - q).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import compute_dtype, log_ops_provider


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
