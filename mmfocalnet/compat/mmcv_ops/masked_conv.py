"""Convolution at some pixels only, with the signatures of `mmcv._ext`.

Called by the heads of guided anchoring in inference. mmcv multiplies the columns of
`masked_im2col_forward` with the kernel and puts the results back with `masked_col2im_forward`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocalnet.compat.mmcv_ops.common import log_ops_provider


@torch.no_grad()
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Copy what the kernel covers at M pixels, zeros outside the map.

    Args:
        im: Features of one image (1, C, H, W).
        mask_h_idx: Rows of the output pixels (int64), shape (M,).
        mask_w_idx: Their columns, likewise.
        col: Filled, shape (C * kernel_h * kernel_w, M).
        kernel_h: Rows of the kernel.
        kernel_w: Columns of the kernel.
        pad_h: Rows of zeros above the map.
        pad_w: Columns of zeros at the left.
    """
    log_ops_provider()
    padded = F.pad(im[0], (pad_w, kernel_w - 1, pad_h, kernel_h - 1))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))


@torch.no_grad()
def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Copy col (C, M) to the pixels of im (1, C, H, W) at the rows and columns (M,).

    `height`, `width` and `channels` are those of im and not used.
    """
    im[0, :, mask_h_idx, mask_w_idx] = col
