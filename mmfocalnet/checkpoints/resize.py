"""Resize tensors of a checkpoint: pure functions that document what they preserve."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.errors import CheckpointError


def resize_kernel(weight: Tensor, size: int) -> Tensor:
    """Zero-pad a kernel, or crop it to its centre.

    Zero-padding does not change the result of the convolution. Cropping does; compare the
    `kernel_energy` before and after.

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


def adapt_input_channels(weight: Tensor, channels: int, name: str = 'The checkpoint') -> Tensor:
    """Change the number of input channels of the stem's kernel, plain or overlapped.

    - Any number to 1: the sum over the channels. A grey image gets the embedding of the
      image that repeats it in all channels.
    - 1 to any number: the kernel divided by that number, in each channel. An image with equal
      channels gets the embedding of one of them.
    - 2 or more to more: zeros for the new channels. The embedding does not depend on them.

    Args:
        weight: Kernel (C, C_in, k, k).
        channels: New C_in.
        name: Name of the checkpoint, for the error message. Defaults to ``'The checkpoint'``.

    Returns:
        Kernel (C, channels, k, k).

    Raises:
        CheckpointError: If channels would have to be removed, because the choice is ambiguous.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if old == 1:
        return weight.repeat(1, channels, 1, 1) / channels
    if old > channels:
        raise CheckpointError(
            f'{name} has {old} input channels and the model {channels}, and it is unknown which '
            f'to remove. Set in_chans={old}, or slice patch_embed.proj.weight before loading.'
        )
    return F.pad(weight, (0, 0, 0, 0, 0, channels - old))


def resize_patch_embedding(weight: Tensor, size: int, name: str = 'The checkpoint') -> Tensor:
    """Change the patch size of the plain patch embedding.

    A patch of the smaller size and the same patch enlarged bilinearly to the larger size get the
    same embedding. Enlarging selects the kernel of minimum norm with this property, by the
    pseudo-inverse resize of FlexiViT (arXiv:2212.08013). Shrinking it back returns the original
    kernel.

    Args:
        weight: Kernel (C, C_in, p, p) of stride p.
        size: New p.
        name: Name of the checkpoint, for the error message. Defaults to ``'The checkpoint'``.

    Returns:
        Kernel (C, C_in, size, size).

    Raises:
        CheckpointError: If the old or new kernel is the overlapped 7x7 one, whose stride 4 is
            fixed.
    """
    old = weight.shape[-1]
    if old == size:
        return weight
    if 7 in (old, size):
        raise CheckpointError(
            f'{name} has a patch embedding of {old}x{old} and the model {size}x{size}, and the '
            'overlapped 7x7 embedding of stride 4 cannot be resized. Set patch_size and '
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
