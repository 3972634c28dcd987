"""Parameters and FLOPs of FocalNet classifiers, counted as in the paper's tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import FocalNet, PatchEmbed
from mmfocalnet.models.mixers import (
    DepthwiseConv,
    MultiscaleAttentionFirst,
    MultiscaleAttentionLater,
    SlidingWindowAttention,
)

NUM_CLASSES = 1000  # ImageNet-1K


def classifier_parameters(net: FocalNet) -> int:
    """Count the parameters of a backbone with a final norm and a linear head of 1000 classes.

    Args:
        net: The backbone. Its output norms are not counted.

    Returns:
        Number of parameters.
    """
    norms = {id(p) for norm in _output_norms(net) for p in norm.parameters()}
    backbone = sum(p.numel() for p in net.parameters() if id(p) not in norms)
    features = net.num_features[-1]
    return backbone + 2 * features + NUM_CLASSES * (features + 1)


def classifier_flops(net: FocalNet, size: int = 224) -> int:
    """Count the multiply-accumulates of that classifier by the formula of the published code.

    Linear maps and convolutions are counted (the only bias is that of h), plus one operation per
    element for norms (except the final one), for each summed context and for the final average.
    Patch embeddings are counted as if their kernel size equalled their stride. The published code
    has no formula for the mixers of Table 10; for attention, its two products are counted too.

    Args:
        net: The backbone, with its last stage among the outputs. It may be on the meta device,
            which is fastest.
        size: Height and width of the image in pixels. Defaults to 224.

    Returns:
        Number of multiply-accumulates for one image.
    """
    counts = []
    hooks = [
        module.register_forward_hook(lambda module, _, out: counts.append(_operations(module, out)))
        for module in _counted_modules(net)
    ]
    weight = net.patch_embed.proj.weight
    try:
        with torch.no_grad():
            out = net(weight.new_empty(1, weight.shape[1], size, size))[-1]
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts) + out.numel() + NUM_CLASSES * net.num_features[-1]


def _output_norms(net: FocalNet) -> list[nn.Module]:
    return [getattr(net, f'norm{stage}') for stage in net.out_indices]


def _counted_modules(net: FocalNet) -> list[nn.Module]:
    # PatchEmbed is counted instead of its convolution.
    inside = [module.proj for module in net.modules() if isinstance(module, PatchEmbed)]
    left_out = {*inside, *_output_norms(net)}
    return [module for module in net.modules() if module not in left_out]


def _operations(module: nn.Module, out: Tensor) -> int:
    """Multiply-accumulates of a module, without those of its submodules."""
    per_element = 0
    if isinstance(module, nn.Linear):
        per_element = module.in_features
    elif isinstance(module, nn.Conv2d):
        per_element = module.weight[0].numel()
    elif isinstance(module, PatchEmbed):
        per_element = module.proj.in_channels * module.patch_size**2
    elif isinstance(module, (nn.LayerNorm, DepthwiseConv)):
        per_element = 1  # for DepthwiseConv: the bias of h
    elif isinstance(module, FocalModulation):
        per_element = module.num_contexts + 1  # contexts and bias of h
    elif isinstance(module, (MultiscaleAttentionFirst, MultiscaleAttentionLater)):
        per_element = 2 * (len(module.focal_layers) + 2)
    elif isinstance(module, SlidingWindowAttention):
        per_element = 2 * module.window**2
    return per_element * (out.numel() if per_element else 0)
