"""The attention masks of PSANet, with the signatures of `mmcv._ext`.

The input has for each pixel p a map of weights of the pixels around it, with p at its center. The
output has a weight for each pair of pixels q and p of the map, 0 where q is not in p's map,

    output[q, p] = input[q - p + center, p]   (collect, psa_type 0),

and the transpose, output[p, q], to distribute (psa_type 1).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import add_gradients, log_ops_provider


@torch.no_grad()
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Move relative weights to absolute positions.

    Args:
        input: Weights (B, h_mask * w_mask, H, W), any dtype.
        output: Filled, shape (B, H * W, H, W).
        psa_type: 0 to collect, 1 to distribute.
        num_: Not used: B.
        h_feature: H.
        w_feature: W.
        h_mask: Rows of the map of a pixel.
        w_mask: Its columns.
        half_h_mask: Row of the pixel in its map.
        half_w_mask: Its column.
    """
    log_ops_provider()
    size, mask_size = (h_feature, w_feature), (h_mask, w_mask)
    output.copy_(_move(input, psa_type, size, mask_size, (half_h_mask, half_w_mask)))


@torch.no_grad()
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill `grad_input`; the other arguments are those of `psamask_forward`."""
    move = functools.partial(
        _move,
        psa_type=psa_type,
        size=(h_feature, w_feature),
        mask_size=(h_mask, w_mask),
        center=(half_h_mask, half_w_mask),
    )
    # The op is linear, so that any input will do.
    add_gradients(move, [grad_input.zero_()], [grad_input], grad_output)


def _move(
    x: Tensor,
    psa_type: int,
    size: tuple[int, int],
    mask_size: tuple[int, int],
    center: tuple[int, int],
) -> Tensor:
    rows, columns = (
        # q - p + center along one axis
        torch.arange(n, device=x.device)[:, None] - torch.arange(n, device=x.device) + middle
        for n, middle in zip(size, center, strict=True)
    )
    exists = [(at >= 0) & (at < n) for at, n in zip((rows, columns), mask_size, strict=True)]
    inside = exists[0][:, None, :, None] & exists[1][:, None]  # (H, W, H, W)
    index = (rows * mask_size[1])[:, None, :, None] + columns[:, None]
    pixels = size[0] * size[1]
    index, inside = (tensor.reshape(pixels, pixels) for tensor in (index, inside))
    index = index.where(inside, 0).expand(len(x), -1, -1)
    weights = x.flatten(2).gather(1, index).masked_fill(~inside, 0)
    if psa_type == 1:
        weights = weights.transpose(1, 2)
    return weights.reshape(len(x), pixels, *size)
