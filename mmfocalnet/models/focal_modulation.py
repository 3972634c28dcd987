"""The focal modulation operator (Section 3.2 of the paper, Eq. 3-6 and Algorithm 1)."""

from __future__ import annotations

from torch import Tensor, nn

from mmfocalnet.errors import ConfigError
from mmfocalnet.ops import (
    ModulationWeights,
    gated_sum,
    is_exact_gelu,
    linear,
    modulate,
    runs_as_it_stands,
)


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
        x = modulate(x, self._weights()) if self._is_plain() else self._by_layer(x)
        if self.ln is not None:
            x = self.ln(x)
        if runs_as_it_stands(self.proj, nn.Linear):
            x = linear(x, self.proj.weight, self.proj.bias)
        else:
            x = self.proj(x)
        return self.proj_drop(x)

    def _weights(self) -> ModulationWeights:
        return ModulationWeights(
            self.f.weight,
            self.f.bias,
            tuple(layer[0].weight for layer in self.focal_layers),
            self.h.weight,
            self.h.bias,
            self.normalize_modulator,
        )

    def _is_plain(self) -> bool:
        convolutions = [layer[0] for layer in self.focal_layers]
        return (
            runs_as_it_stands(self.f, nn.Linear)
            and all(runs_as_it_stands(conv, nn.Conv2d) for conv in (self.h, *convolutions))
            and all(_is_depthwise(conv) for conv in convolutions)
            and self.h.kernel_size == self.h.stride == (1, 1)
            and self.h.padding == (0, 0)
            and self.h.groups == 1
            and all(runs_as_it_stands(layer, nn.Sequential) for layer in self.focal_layers)
            and all(len(layer) == 2 and is_exact_gelu(layer[1]) for layer in self.focal_layers)
        )

    def _by_layer(self, x: Tensor) -> Tensor:
        """Do what `mmfocalnet.ops.modulate` does, through the layers that hooks watch."""
        query, context, gates = self.f(x).split((self.dim, self.dim, self.focal_level + 1), dim=-1)
        total = gated_sum(context, gates, self.focal_layers)
        if self.normalize_modulator:
            total = total / (self.focal_level + 1)
        return query * self.h(total.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


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


def _is_depthwise(conv: nn.Conv2d) -> bool:
    size = conv.kernel_size[0]
    same_size = conv.kernel_size == (size, size) and conv.padding == (size // 2, size // 2)
    unit_steps = conv.stride == conv.dilation == (1, 1)
    usual = same_size and unit_steps and conv.padding_mode == 'zeros'
    return usual and conv.groups == conv.in_channels and conv.bias is None
