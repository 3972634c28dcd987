"""Token mixers that take focal modulation's place in the block: the paper's model variants.

The paper derives six variants from FocalNet-T (Table 10) and gives a formula for each. What the
formulas leave open is chosen so that parameters and FLOPs are the printed ones, as each class
says; `docs/ablations.md` has the counts. All mixers map (B, H, W, C) to (B, H, W, C) and end
with the operator's output projection.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.arguments import integer, probability
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focal_modulation import (
    FocalModulation,
    focal_layer,
    global_context,
    kernel_sizes,
)
from mmfocalnet.text import short_repr

HEAD_DIM = 32  # of attention, as in Swin; the paper names none, and no count depends on it


class DepthwiseConv(nn.Module):
    """Depth-wise convolutions, then a two-layer MLP: y_i = q(GELU(h(z_i^L))).

    No gates, no global context and nothing to modulate. The linear map before the focal levels
    and the output projection stay, without which the printed 28.6 M parameters are not reached.

    Args:
        dim: Number of channels C.
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.
        proj_drop: Dropout rate after the output projection. Defaults to 0.

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
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        dim = integer('dim', dim, minimum=1)
        self.f = nn.Linear(dim, dim)
        self.focal_layers = _focal_layers(dim, focal_window, focal_level, focal_factor)
        self.h = nn.Conv2d(dim, dim, kernel_size=1)
        self.q = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(probability('proj_drop', proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) into (B, H, W, C)."""
        context = self.f(x).permute(0, 3, 1, 2)
        for layer in self.focal_layers:
            context = layer(context)
        x = self.q(F.gelu(self.h(context)).permute(0, 2, 3, 1))
        return self.proj_drop(self.proj(x))


class Pooling(FocalModulation):
    """Focal modulation with averages of the same windows for the depth-wise convolutions.

    As in the operator each level ends with a GELU; the paper's formula leaves it out, but so
    does that of the global average, whose row is the network without focal levels of Table 12.
    Cells beyond the border do not count.

    Args:
        dim: Number of channels C.
        **settings: Further arguments of `FocalModulation`.

    Raises:
        ConfigError: As `FocalModulation`.
    """

    def __init__(self, dim: int, **settings: Any) -> None:
        super().__init__(dim, **settings)
        convolutions = [layer[0] for layer in self.focal_layers]
        self.focal_layers = nn.ModuleList(
            nn.Sequential(
                nn.AvgPool2d(conv.kernel_size, 1, conv.padding, count_include_pad=False), nn.GELU()
            )
            for conv in convolutions
        )


class GlobalPooling(FocalModulation):
    """Focal modulation by the gated global context alone: no focal levels.

    Args:
        dim: Number of channels C.
        focal_level: Of no effect: there are no focal levels.
        **settings: Further arguments of `FocalModulation`.

    Raises:
        ConfigError: As `FocalModulation`.
    """

    def __init__(self, dim: int, focal_level: int = 0, **settings: Any) -> None:
        super().__init__(dim, focal_level=0, **settings)


class _MultiscaleAttention(nn.Module):
    """What the two kinds share: L focal levels, multi-head attention of each x_i over its scales.

    The keys are z_i^0 to z_i^{L+1}: the location's own features, its L contexts and the global
    one. L + 2 keys per location, not the formula's L + 1, give the printed FLOPs.
    """

    def __init__(
        self,
        dim: int,
        focal_window: int,
        focal_level: int,
        focal_factor: int = 2,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        dim = integer('dim', dim, minimum=1)
        self.num_heads = _num_heads(dim)
        self.focal_layers = _focal_layers(dim, focal_window, focal_level, focal_factor)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(probability('proj_drop', proj_drop))

    def _scales(self, x: Tensor) -> Tensor:
        """Stack z^0 to z^{L+1}: (B, H, W, C) to (B, H, W, L + 2, C)."""
        scales = [x.permute(0, 3, 1, 2)]
        for layer in self.focal_layers:
            scales.append(layer(scales[-1]))
        scales.append(global_context(scales[-1]).expand_as(scales[0]))
        return torch.stack([scale.permute(0, 2, 3, 1) for scale in scales], dim=3)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from (B, H, W, C) to its own keys and values (B, H, W, L + 2, C)."""
        query, keys, values = (t.unflatten(-1, (self.num_heads, -1)) for t in (query, keys, values))
        scores = torch.einsum('bhwnd,bhwknd->bhwkn', query, keys) * query.shape[-1] ** -0.5
        x = torch.einsum('bhwkn,bhwknd->bhwnd', scores.softmax(dim=3), values)
        return self.proj_drop(self.proj(x.flatten(3)))


class MultiscaleAttentionFirst(_MultiscaleAttention):
    """Attention over the scales of a location, with q, k and v computed before aggregation.

    Keys and values pass through the same focal levels: kernels of their own would make 29.0 M
    parameters, where 28.6 M are printed.

    Args:
        dim: Number of channels C.
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.
        proj_drop: Dropout rate after the output projection. Defaults to 0.

    Raises:
        ConfigError: If a kernel size would be even or not positive, or ``focal_level`` is
            negative.
    """

    def __init__(self, dim: int, *args: Any, **settings: Any) -> None:
        super().__init__(dim, *args, **settings)
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) into (B, H, W, C)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        keys, values = self._scales(torch.cat([key, value])).chunk(2)
        return self._attend(query, keys, values)


class MultiscaleAttentionLater(_MultiscaleAttention):
    """Attention over the scales of a location, with k and v computed from each of its scales.

    The keys and values of the global context are computed at every location, though they are
    the same everywhere: the printed FLOPs include that.

    Args:
        dim: Number of channels C.
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.
        proj_drop: Dropout rate after the output projection. Defaults to 0.

    Raises:
        ConfigError: If a kernel size would be even or not positive, or ``focal_level`` is
            negative.
    """

    def __init__(self, dim: int, *args: Any, **settings: Any) -> None:
        super().__init__(dim, *args, **settings)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) into (B, H, W, C)."""
        keys, values = self.kv(self._scales(x)).chunk(2, dim=-1)
        return self._attend(self.q(x), keys, values)


class SlidingWindowAttention(nn.Module):
    """Multi-head attention of each location over the 7x7 around it, itself included.

    Cells beyond the border are masked. There is no position bias, of which the paper says
    nothing. The neighbours' keys and values are laid out in memory, each 49 times the features.

    Args:
        dim: Number of channels C.
        proj_drop: Dropout rate after the output projection. Defaults to 0.
    """

    window = 7

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        dim = integer('dim', dim, minimum=1)
        self.num_heads = _num_heads(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(probability('proj_drop', proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, H, W, C) into (B, H, W, C)."""
        size = x.shape[1:3]
        qkv = self.qkv(x).permute(0, 3, 1, 2)
        query, key, value = qkv.chunk(3, dim=1)
        # [B, C, H, W] -> [B, heads, C / heads, H*W], and the neighbours' 49 before H*W.
        query = query.flatten(2).unflatten(1, (self.num_heads, -1))
        keys, values = (self._neighbours(part) for part in (key, value))
        scores = torch.einsum('bndp,bndkp->bnkp', query, keys) * query.shape[2] ** -0.5
        inside = F.unfold(x.new_ones(1, 1, *size), self.window, padding=self.window // 2)
        scores = scores.masked_fill(inside == 0, float('-inf'))
        x = torch.einsum('bnkp,bndkp->bndp', scores.softmax(dim=2), values)
        x = x.flatten(1, 2).unflatten(2, size).permute(0, 2, 3, 1)
        return self.proj_drop(self.proj(x))

    def _neighbours(self, x: Tensor) -> Tensor:
        neighbours = F.unfold(x, self.window, padding=self.window // 2)
        return neighbours.unflatten(1, (self.num_heads, -1, self.window**2))


MIXERS: dict[str, type[nn.Module]] = {
    'focal_modulation': FocalModulation,
    'depthwise_conv': DepthwiseConv,
    'pooling': Pooling,
    'global_pooling': GlobalPooling,
    'multiscale_attention_first': MultiscaleAttentionFirst,
    'multiscale_attention_later': MultiscaleAttentionLater,
    'sliding_window_attention': SlidingWindowAttention,
}

# Settings of focal modulation that the mixers not derived from it have too, or leave unused.
_COMMON = ('focal_window', 'focal_level', 'focal_factor', 'proj_drop')


def build_mixer(name: str, dim: int, settings: dict[str, Any]) -> nn.Module:
    """Make a token mixer by its name.

    Args:
        name: A key of `MIXERS`.
        dim: Number of channels C.
        settings: Further arguments of `FocalModulation`. A mixer that is not derived from it
            takes of window, levels and dropout what it has.

    Returns:
        The mixer, a map of (B, H, W, C) to (B, H, W, C).

    Raises:
        ConfigError: If there is no such mixer, it does not have a setting that was changed, or
            the settings do not fit.
    """
    if not isinstance(name, str) or name not in MIXERS:
        raise ConfigError(f'There is no mixer {short_repr(name)}: choose from {", ".join(MIXERS)}.')
    mixer = MIXERS[name]
    if issubclass(mixer, FocalModulation):
        return mixer(dim, **settings)
    _check_unchanged(name, settings)
    taken = ('proj_drop',) if mixer is SlidingWindowAttention else _COMMON
    return mixer(dim, **{key: settings[key] for key in taken if key in settings})


def _check_unchanged(name: str, settings: dict[str, Any]) -> None:
    """Refuse changed settings that only focal modulation has."""
    parameters = inspect.signature(FocalModulation).parameters
    for key, value in settings.items():
        if key not in _COMMON and value != parameters[key].default:
            raise ConfigError(
                f'mixer={name!r} has no {key}, got {short_repr(value)}: leave it at '
                f"{parameters[key].default!r}, or use mixer='focal_modulation'."
            )


def _focal_layers(dim: int, window: int, level: int, factor: int) -> nn.ModuleList:
    return nn.ModuleList(focal_layer(dim, size) for size in kernel_sizes(window, level, factor))


def _num_heads(dim: int) -> int:
    """The most heads that divide the channels and have `HEAD_DIM` of them or more; at least 1."""
    return next(n for n in range(max(1, dim // HEAD_DIM), 0, -1) if dim % n == 0)
