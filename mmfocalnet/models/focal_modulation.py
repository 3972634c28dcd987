"""The focal modulation operator (Section 3.2 of the paper, Eq. 3-6 and Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfocalnet.errors import ConfigError


class FocalModulation(nn.Module):
    """Focal modulation: aggregate the context first, then interact with it once.

    For every location i the operator computes y_i = q(x_i) * h(sum_l g_i^l z_i^l) (Eq. 6):
    a query q, a hierarchy of contexts z^l from ever wider depth-wise convolutions
    (Eq. 4), gates g^l that choose per location how much each focal level counts (Eq. 5),
    and a linear map h that turns the gated sum into the modulator.

    Args:
        dim: Number of channels C.
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels, each one depth-wise convolution; the global
            context comes on top. Level l (from 0) has kernel size
            ``focal_window + focal_factor * l``.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.
        bias: Whether ``f`` and ``h`` have a bias. Defaults to True.
        proj_drop: Dropout rate after the output projection. Defaults to 0.
        use_postln_in_modulation: Normalise the modulated query (the huge models).
            Defaults to False.
        normalize_modulator: Divide the gated sum by L + 1. Defaults to False.

    Raises:
        ConfigError: If a kernel size would be even or not positive, or ``focal_level`` is
            negative.
    """

    def __init__(
        self,
        dim: int,
        focal_window: int,
        focal_level: int,
        focal_factor: int = 2,
        bias: bool = True,
        proj_drop: float = 0.0,
        use_postln_in_modulation: bool = False,
        normalize_modulator: bool = False,
    ) -> None:
        super().__init__()
        check_focal_window(focal_window, focal_level, focal_factor)
        self.dim = dim
        self.focal_level = focal_level
        self.normalize_modulator = normalize_modulator

        # Parameter names and shapes (the 1x1 convolution h among them) are those of the
        # released checkpoints.
        self.f = nn.Linear(dim, 2 * dim + focal_level + 1, bias=bias)
        self.h = nn.Conv2d(dim, dim, kernel_size=1, bias=bias)
        self.act = nn.GELU()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.focal_layers = nn.ModuleList(
            _focal_layer(dim, focal_window + focal_factor * level) for level in range(focal_level)
        )
        self.ln = nn.LayerNorm(dim) if use_postln_in_modulation else None

    def forward(self, x: Tensor) -> Tensor:
        """Modulate every location of ``x`` by its context.

        Args:
            x: Features (B, H, W, C).

        Returns:
            Features (B, H, W, C).
        """
        query, context, gates = self.f(x).split((self.dim, self.dim, self.focal_level + 1), dim=-1)
        x = query * self.modulator(context, gates)
        if self.ln is not None:
            x = self.ln(x)
        return self.proj_drop(self.proj(x))

    def modulator(self, context: Tensor, gates: Tensor) -> Tensor:
        """Aggregate the context over all focal levels (Eq. 4 and 5) and map it by h (Eq. 6).

        Args:
            context: Projected features z^0 (B, H, W, C).
            gates: Gates of the focal levels, the global one last (B, H, W, L + 1).

        Returns:
            The modulator (B, H, W, C).
        """
        # [B, H, W, C] -> [B, C, H, W] without a copy: the memory stays channels-last, where
        # large depth-wise kernels run many times faster than in channels-first.
        context = context.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        gates = gates.permute(0, 3, 1, 2).unbind(1)
        total = 0.0
        for layer, gate in zip(self.focal_layers, gates[:-1], strict=True):
            context = layer(context)
            total = total + context * gate.unsqueeze(1)
        global_context = self.act(context.mean(dim=(2, 3), keepdim=True))
        total = total + global_context * gates[-1].unsqueeze(1)
        if self.normalize_modulator:
            total = total / (self.focal_level + 1)
        return self.h(total).permute(0, 2, 3, 1)


def check_focal_window(focal_window: int, focal_level: int, focal_factor: int = 2) -> None:
    """Refuse kernel sizes that cannot be centred on a location.

    Raises:
        ConfigError: If a kernel size would be even or not positive, or ``focal_level`` is
            negative.
    """
    if not isinstance(focal_level, int) or focal_level < 0:
        raise ConfigError(f'focal_level must be a whole number, 0 or more, got {focal_level}.')
    if not isinstance(focal_window, int) or focal_window < 1 or focal_window % 2 == 0:
        raise ConfigError(
            f'focal_window must be an odd positive number, got {focal_window}: '
            'an even kernel has no centre; use e.g. 3, 5, 7 or 9.'
        )
    if not isinstance(focal_factor, int) or focal_factor < 0 or focal_factor % 2:
        raise ConfigError(
            f'focal_factor must be an even number, 0 or more, got {focal_factor}: '
            'an odd step makes every second kernel even.'
        )


def _focal_layer(dim: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
    return nn.Sequential(conv, nn.GELU())
