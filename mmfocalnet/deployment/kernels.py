"""Crop depth-wise kernels whose outer rings are zero, which does not change any output."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import FocalNet


def crop_kernels(model: nn.Module) -> str | None:
    """Replace the kernels of focal modulation by their centre where the rest is zero.

    Kernels that were padded when a checkpoint was loaded, and not trained since, have such rings.

    Args:
        model: A model with FocalNets; it is modified.

    Returns:
        What was cropped; None if nothing.
    """
    cropped: Counter[str] = Counter()
    before = after = 0.0
    count = 0
    for net in model.modules():
        if not isinstance(net, FocalNet):
            continue
        for depth, stage in enumerate(net.layers):
            for layer in _focal_layers(stage):
                old = layer[0].kernel_size[0]
                new = support(layer[0].weight)
                if new < old:
                    layer[0] = _cropped(layer[0], new)
                    cropped[f'{old}x{old} to {new}x{new}'] += 1
                per_area = layer[0].in_channels / 4**depth
                before += per_area * old**2
                after += per_area * new**2
                count += 1
    if not cropped:
        return None
    changes = ', '.join(f'{number} from {change}' for change, number in cropped.items())
    return (
        f'{cropped.total()} of {count} focal kernels cropped, because the rest is zero: {changes}; '
        f'{1 - after / before:.0%} fewer multiply-accumulates in depth-wise convolutions'
    )


def support(kernels: Tensor) -> int:
    """Size of the smallest centred window outside of which kernels (C, 1, k, k) are zero.

    Args:
        kernels: The kernels, of odd size k.

    Returns:
        An odd size from 1 to k.
    """
    size = kernels.shape[-1]
    used = (kernels != 0).flatten(0, 1).any(0)
    for ring in range(size // 2):
        outer = used[ring : size - ring, ring : size - ring]
        if outer[[0, -1]].any() or outer[:, [0, -1]].any():
            return size - 2 * ring
    return 1


def _focal_layers(stage: nn.Module) -> list[nn.Sequential]:
    return [
        layer
        for module in stage.modules()
        if isinstance(module, FocalModulation)
        for layer in module.focal_layers
    ]


def _cropped(conv: nn.Conv2d, size: int) -> nn.Conv2d:
    """A depth-wise convolution with the centre of the kernels of another."""
    channels, margin = conv.in_channels, (conv.kernel_size[0] - size) // 2
    new = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
    centre = slice(margin, margin + size)
    new.weight.data = conv.weight.data[..., centre, centre].clone()
    return new.eval()
