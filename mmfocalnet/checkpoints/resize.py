"""Resizing the tensors of a checkpoint: pure functions, each saying what it preserves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.errors import CheckpointError


def resize_kernel(weight: Tensor, size: int) -> Tensor:
    """Centre a kernel in zeros, or cut out its centre.

    Zero-padding leaves the convolution's result unchanged; cropping does not, and loses
    the share of the kernel's energy that `kernel_energy` tells by a comparison.

    Args:
        weight: Kernel (C, 1, k, k), k odd.
        size: New k, odd.

    Returns:
        Kernel (C, 1, size, size).
    """
    margin = (size - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4)


def kernel_energy(weight: Tensor) -> float:
    """Sum of the squares of a kernel (C, 1, k, k), in double precision."""
    return weight.double().square().sum().item()


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Give the stem's kernel, plain or overlapped, another number of input channels.

    - Any number to 1: the sum over the channels. A grey image gets the embedding of the
      image that repeats it in all channels.
    - 1 to any number: an equal share each. An image equal in all channels gets the
      embedding of one of them.
    - 2 or more to more: zeros for the new channels. The embedding stays the same, whatever
      they hold.

    Args:
        weight: Kernel (C, C_in, k, k).
        channels: New C_in.

    Returns:
        Kernel (C, channels, k, k).

    Raises:
        CheckpointError: If channels would have to be left out: which ones, nobody knows.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if old == 1:
        return weight.repeat(1, channels, 1, 1) / channels
    if old > channels:
        raise CheckpointError(
            f'has {old} input channels but the model has {channels}, and which to leave out is '
            f'unknown: set in_chans={old}, or cut patch_embed.proj.weight yourself.'
        )
    return F.pad(weight, (0, 0, 0, 0, 0, channels - old))


def resize_patch_embedding(weight: Tensor, size: int) -> Tensor:
    """Give the plain patch embedding another patch size.

    Either way a patch of the smaller size and the same patch enlarged bilinearly to the
    larger size get the same embedding. Enlarging takes, of all kernels that do so, the one
    of least norm: the pseudo-inverse resize of FlexiViT (arXiv:2212.08013). Shrinking
    back then returns the kernel from before.

    Args:
        weight: Kernel (C, C_in, p, p) of stride p.
        size: New p.

    Returns:
        Kernel (C, C_in, size, size).

    Raises:
        CheckpointError: If one of the kernels is the overlapped 7x7 one of stride 4, whose
            stride is fixed.
    """
    old = weight.shape[-1]
    if old == size:
        return weight
    if 7 in (old, size):
        raise CheckpointError(
            f'has a patch embedding of {old}x{old} but the model has {size}x{size}, and the '
            'overlapped 7x7 embedding of stride 4 has no other size: set patch_size and '
            'use_conv_embed as in the checkpoint.'
        )
    enlarge = _bilinear(min(old, size), max(old, size))
    # A patch x enlarges to E x E^T. The embedding <w, x> of the small patch and
    # <v, E x E^T> of the large one agree for every x if E^T v E = w.
    transform = enlarge.T if size < old else torch.linalg.pinv(enlarge).T
    return (transform @ weight.double() @ transform.T).to(weight.dtype)


def _bilinear(old: int, new: int) -> Tensor:
    """The matrix (new, old) that enlarges a signal of ``old`` samples linearly."""
    basis = torch.eye(old, dtype=torch.float64).unsqueeze(1)  # [old, 1, old]: one per sample
    return F.interpolate(basis, size=new, mode='linear', align_corners=False).squeeze(1).T
