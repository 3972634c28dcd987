"""The operators in plain PyTorch: what every faster path is tested against, and the fallback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class ModulationWeights(NamedTuple):
    """What a focal modulation multiplies with, named as in the paper's Eq. 3 to 6.

    L focal levels, each with a depth-wise kernel of size k_l.
    """

    f_weight: Tensor  # (2C + L + 1, C): query, context and gates.
    f_bias: Tensor | None
    kernels: tuple[Tensor, ...]  # (C, 1, k_l, k_l) each.
    h_weight: Tensor  # (C, C, 1, 1)
    h_bias: Tensor | None
    normalize_modulator: bool = False


def modulate(
    x: Tensor,
    weights: ModulationWeights,
    aggregate: Callable[..., Tensor] | None = None,
    linear: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """Modulate the query of every location by its context: q(x) * h(sum_l g^l z^l) (Eq. 6).

    Args:
        x: Features (B, H, W, C).
        weights: Weights of f, the focal levels and h.
        aggregate: What computes Eq. 4 and 5. Defaults to `aggregate_context`.
        linear: What computes the linear maps. Defaults to PyTorch's.

    Returns:
        Features (B, H, W, C), to be projected by the caller.
    """
    dim = weights.h_weight.shape[0]
    projected = linear(x, weights.f_weight, weights.f_bias)
    query, context, gates = projected.split((dim, dim, len(weights.kernels) + 1), dim=-1)
    total = (aggregate or aggregate_context)(context, gates, weights.kernels)
    if weights.normalize_modulator:
        total = total / (len(weights.kernels) + 1)
    return query * linear(total, weights.h_weight.flatten(1), weights.h_bias)


def aggregate_context(context: Tensor, gates: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Sum the gated contexts of all focal levels and the global one (Eq. 4 and 5).

    Args:
        context: Projected features z^0 (B, H, W, C).
        gates: Gates of the focal levels, the global one last (B, H, W, L + 1).
        kernels: Depth-wise kernels (C, 1, k_l, k_l) of the L focal levels.

    Returns:
        The gated sum (B, H, W, C).
    """
    return gated_sum(context, gates, [_focal_level(kernel) for kernel in kernels])


def gated_sum(
    context: Tensor, gates: Tensor, levels: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """Do what `aggregate_context` does, with each focal level (Eq. 4) given as a function.

    Args:
        context: Projected features z^0 (B, H, W, C).
        gates: Gates of the focal levels, the global one last (B, H, W, L + 1).
        levels: Depth-wise convolution and GELU, of (B, C, H, W) each.

    Returns:
        The gated sum (B, H, W, C).
    """
    # [B, H, W, C] -> [B, C, H, W] without a copy: the memory stays channels-last, where
    # large depth-wise kernels run many times faster than in channels-first.
    context = context.contiguous().permute(0, 3, 1, 2)
    gates = gates.permute(0, 3, 1, 2).unbind(1)
    total = 0.0
    for level, gate in zip(levels, gates[:-1], strict=True):
        context = level(context)
        total = total + context * gate.unsqueeze(1)
    global_context = F.gelu(context.mean(dim=(2, 3), keepdim=True))
    total = total + global_context * gates[-1].unsqueeze(1)
    return total.permute(0, 2, 3, 1)


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """Apply a block's MLP: Linear, GELU, Linear.

    Args:
        x: Features (..., C).
        fc1_weight: (D, C), D being the hidden width.
        fc1_bias: (D) or None.
        fc2_weight: (C, D).
        fc2_bias: (C) or None.

    Returns:
        Features (..., C).
    """
    return F.linear(F.gelu(F.linear(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def _focal_level(kernel: Tensor) -> Callable[[Tensor], Tensor]:
    channels, _, size, _ = kernel.shape
    return lambda z: F.gelu(F.conv2d(z, kernel, padding=size // 2, groups=channels))
