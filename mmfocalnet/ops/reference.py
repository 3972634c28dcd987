"""Reference implementation of the operators in PyTorch: Eq. 3 to 6 of the paper.

It runs everywhere and is what every faster path is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class ModulationWeights(NamedTuple):
    """Weights of a focal modulation with L levels and kernels of size k_l (Eq. 3 to 6).

    Attributes:
        f_weight: Linear map f (2C + L + 1, C) to query, context and gates.
        f_bias: Bias (2C + L + 1,), or None.
        kernels: Depth-wise kernel (C, 1, k_l, k_l) of each focal level.
        h_weight: 1x1 convolution h (C, C, 1, 1) from the gated contexts to the modulator.
        h_bias: Bias (C,), or None.
        normalize_modulator: Divide the gated contexts by L + 1. Defaults to False.
    """

    f_weight: Tensor
    f_bias: Tensor | None
    kernels: tuple[Tensor, ...]
    h_weight: Tensor
    h_bias: Tensor | None
    normalize_modulator: bool = False


def modulate(
    x: Tensor,
    weights: ModulationWeights,
    aggregate: Callable[..., Tensor] | None = None,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """Compute q(x) * h(sum_l g^l z^l) (Eq. 6).

    Args:
        x: Features (B, H, W, C).
        weights: Weights of f, the focal levels and h.
        aggregate: Implementation of Eq. 4 and 5. Defaults to `aggregate_context`.
        linear: Implementation of the linear maps. Defaults to ``torch.nn.functional.linear``.

    Returns:
        Features (B, H, W, C); the caller applies the output projection.
    """
    dim = weights.h_weight.shape[0]
    # Eq. 3, and the gates of Eq. 5: one linear map f gives query, z^0 and gates.
    projected = linear(x, weights.f_weight, weights.f_bias)
    query, context, gates = projected.split((dim, dim, len(weights.kernels) + 1), dim=-1)
    total = (aggregate or aggregate_context)(context, gates, weights.kernels)
    if weights.normalize_modulator:
        total = total / (len(weights.kernels) + 1)
    # Eq. 6: the modulator h(...) times the query.
    return query * linear(total, weights.h_weight.flatten(1), weights.h_bias)


def aggregate_context(context: Tensor, gates: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Sum the gated contexts of all focal levels and the global context (Eq. 4 and 5).

    Args:
        context: Projected features z^0 (B, H, W, C).
        gates: Gates of the focal levels, then of the global context (B, H, W, L + 1).
        kernels: Depth-wise kernels (C, 1, k_l, k_l) of the L focal levels.

    Returns:
        The gated sum (B, H, W, C).
    """
    # [B, H, W, C] -> [B, C, H, W] without a copy: the memory stays channels-last, where large
    # depth-wise kernels run many times faster than in channels-first.
    z = context.contiguous().permute(0, 3, 1, 2)
    *level_gates, global_gate = gates.permute(0, 3, 1, 2).split(1, dim=1)
    total = 0.0
    for kernel, gate in zip(kernels, level_gates, strict=True):
        channels, _, size, _ = map(int, kernel.shape)  # tensors in traces of PyTorch before 2.6
        # Eq. 4: z^l = GELU(depth-wise convolution of z^{l-1}).
        z = F.gelu(F.conv2d(z, kernel, padding=size // 2, groups=channels))
        # Eq. 5: sum of g^l * z^l ...
        total = total + z * gate
    # ... and of the global context z^{L+1}, the average of z^L over the image.
    total = total + F.gelu(z.mean(dim=(2, 3), keepdim=True)) * global_gate
    return total.permute(0, 2, 3, 1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise features (..., C) over the last dimension."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """Apply Linear, GELU, Linear to features (..., C); see `mmfocalnet.ops.feed_forward`."""
    # As rows, because Inductor of PyTorch 2.13 cannot sort the strides of a hidden layer with
    # dynamic sizes under autocast.
    rows = x.reshape(-1, x.shape[-1])
    out = F.linear(F.gelu(F.linear(rows, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
    return out.view(*x.shape[:-1], fc2_weight.shape[0])


def embed_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Embed disjoint patches of images (B, C, H, W); see `mmfocalnet.ops.embed_patches`."""
    return F.conv2d(x, weight, bias, stride=weight.shape[-1]).permute(0, 2, 3, 1)
