"""Effective and theoretical receptive fields of a FocalNet's stages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmfocalnet.models import FocalNet
from mmfocalnet.visualization.modulation import (
    find_block,
    find_focalnet,
    kernel_sizes,
    preserving_modes,
    to_array,
)


class ReceptiveField(NamedTuple):
    """The pixels that affect the central output of a stage.

    Attributes:
        values: Absolute gradient of the input pixels divided by its maximum, float32 (H, W).
        box: Top, left, bottom and right of the pixels that the focal levels and embeddings reach,
            the last two exclusive. It may exceed the image. Only the global context (the spatial
            average) reaches pixels outside of it.
        stage: The stage, from 0.
    """

    values: np.ndarray
    box: tuple[int, int, int, int]
    stage: int

    @property
    def size(self) -> int:
        """Theoretical receptive field, height and width of the box, in pixels."""
        return self.box[2] - self.box[0]


def receptive_field(model: nn.Module, images: Tensor, stage: int = -1) -> ReceptiveField:
    """Measure the effective receptive field of a stage, and compute the theoretical one.

    The effective field is the gradient of the features at the centre of the stage, summed over
    channels, with respect to the input: its absolute value, averaged over images and input
    channels and divided by its maximum. Only the FocalNet runs, in eval mode.

    Args:
        model: Any module that contains a FocalNet.
        images: Normalised images (B, C_in, H, W).
        stage: The stage. Defaults to the last one.

    Raises:
        UserError: As `find_block`.
    """
    net = find_focalnet(model)
    stage, _ = find_block(net, stage, -1)
    outs: list[Tensor] = []
    # Before the output norm: the sum of a LayerNorm's outputs hardly depends on its input.
    handle = net.layers[stage].register_forward_hook(lambda _, __, out: outs.append(out))
    try:
        with preserving_modes(net), torch.inference_mode(False), torch.enable_grad():
            pixels = images.detach().clone().requires_grad_()
            net.requires_grad_(False)
            net(pixels)
            row, column = (side // 2 for side in outs[-1].shape[1:3])
            (gradient,) = torch.autograd.grad(outs[-1][:, row, column].sum(), pixels)
    finally:
        handle.remove()
    values = gradient.abs().mean(dim=(0, 1))
    values = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
    (top, bottom), (left, right) = (_reach(net, stage, index) for index in (row, column))
    return ReceptiveField(to_array(values), (top, left, bottom, right), stage)


def _reach(net: FocalNet, stage: int, index: int) -> tuple[int, int]:
    """First pixel and the one after the last that affect a location, along one axis."""
    first = last = index
    for i in reversed(range(stage + 1)):
        for block in net.layers[i].blocks:
            # Each level's context is computed from the previous level's, so their reaches add up.
            reach = sum(size // 2 for size in kernel_sizes(block.modulation))
            first, last = first - reach, last + reach
        conv = (net.layers[i - 1].downsample if i else net.patch_embed).proj
        first = first * conv.stride[0] - conv.padding[0]
        last = last * conv.stride[0] - conv.padding[0] + conv.kernel_size[0] - 1
    return first, last + 1
