"""Token mixers that replace focal modulation in the block: the variants of Table 10.

The paper gives a formula for each of the six variants of FocalNet-T. Details that the formulas
leave open are chosen such that the numbers of parameters and FLOPs equal the printed ones; see
`docs/ablations.md`. All mixers map (B, H, W, C) to (B, H, W, C) and end with the output projection.

Arguments common to all mixers with focal levels:
    dim: Number of channels C.
    focal_window: Kernel size at the first focal level; odd and positive.
    focal_level: Number L of focal levels.
    focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.
    proj_drop: Dropout rate after the output projection. Defaults to 0.
Invalid values raise `ConfigError`.
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

HEAD_DIM = 32  # As in Swin. The paper does not specify it, and no count depends on it.


class DepthwiseConv(nn.Module):
    """Depth-wise convolutions followed by a two-layer MLP: y_i = q(GELU(h(z_i^L))).

    Without gates, global context and modulation. The linear map before the focal levels and the
    output projection are kept, as the printed 28.6 M parameters require.
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
    """Focal modulation with average pooling in place of the depth-wise convolutions.

    As in the operator, each level ends with a GELU. The paper's formula omits the GELU, but it also
    does for the global average, and that row of Table 10 equals the network without focal levels in
    Table 12. Pixels beyond the border are not counted.

    Args:
        dim: Number of channels C.
        **settings: Further arguments of `FocalModulation`.
    """

    def __init__(self, dim: int, **settings: Any) -> None:
        super().__init__(dim, **settings)
        for layer in self.focal_layers:
            conv = layer[0]
            layer[0] = nn.AvgPool2d(conv.kernel_size, 1, conv.padding, count_include_pad=False)


class GlobalPooling(FocalModulation):
    """Focal modulation by the gated global context alone, without focal levels.

    Args:
        dim: Number of channels C.
        focal_level: Ignored.
        **settings: Further arguments of `FocalModulation`.
    """

    def __init__(self, dim: int, focal_level: int = 0, **settings: Any) -> None:
        super().__init__(dim, focal_level=0, **settings)


class _MultiscaleAttention(nn.Module):
    """Multi-head attention of each location x_i over its own scales.

    The keys are z_i^0 to z_i^{L+1}: the location's features, its L contexts and the global
    context. The printed FLOPs require these L + 2 keys per location; the formula has L + 1.
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
        """Attend from (B, H, W, C) to keys and values (B, H, W, L + 2, C) of the location."""
        query, keys, values = (t.unflatten(-1, (self.num_heads, -1)) for t in (query, keys, values))
        scores = torch.einsum('bhwnd,bhwknd->bhwkn', query, keys) * query.shape[-1] ** -0.5
        x = torch.einsum('bhwkn,bhwknd->bhwnd', scores.softmax(dim=3), values)
        return self.proj_drop(self.proj(x.flatten(3)))


class MultiscaleAttentionFirst(_MultiscaleAttention):
    """Attention over the scales of a location; q, k and v are computed before aggregation.

    Keys and values share the focal levels: separate kernels would give 29.0 M parameters instead
    of the printed 28.6 M.
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
    """Attention over the scales of a location; k and v are computed from each scale.

    Keys and values of the global context are computed at every location, although they are the
    same everywhere, because the printed FLOPs include that.
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
    """Multi-head attention of each location over the 7x7 window centred on it.

    Locations beyond the border are masked. There is no position bias; the paper does not mention
    one. The keys and values of all windows are materialised, each 49 times the features' memory.

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
        # Query: [B, C, H, W] -> [B, heads, C / heads, H*W]; keys and values: [..., 49, H*W].
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

# Settings that mixers not derived from FocalModulation support or ignore.
_COMMON_SETTINGS = ('focal_window', 'focal_level', 'focal_factor', 'proj_drop')


def build_mixer(name: str, dim: int, settings: dict[str, Any]) -> nn.Module:
    """Build a token mixer by name.

    Args:
        name: A key of `MIXERS`.
        dim: Number of channels C.
        settings: Further arguments of `FocalModulation`. Other mixers use only those that they
            accept of ``focal_window``, ``focal_level``, ``focal_factor``, ``proj_drop``.

    Returns:
        The mixer, a map of (B, H, W, C) to (B, H, W, C).

    Raises:
        ConfigError: If the mixer is unknown, does not have a setting that differs from its
            default, or a setting is invalid.
    """
    check_mixer_name(name)
    mixer = MIXERS[name]
    if issubclass(mixer, FocalModulation):
        return mixer(dim, **settings)
    defaults = inspect.signature(FocalModulation).parameters
    for key, value in settings.items():
        if key not in _COMMON_SETTINGS and value != defaults[key].default:
            raise ConfigError(
                f'mixer={name!r} has no {key}, got {short_repr(value)}: remove it, or set '
                "mixer='focal_modulation'."
            )
    supported = ('proj_drop',) if mixer is SlidingWindowAttention else _COMMON_SETTINGS
    return mixer(dim, **{key: settings[key] for key in supported if key in settings})


def check_mixer_name(name: Any) -> None:
    """Raise `ConfigError` unless a mixer has this name."""
    if not isinstance(name, str) or name not in MIXERS:
        raise ConfigError(f'There is no mixer {short_repr(name)}: choose from {", ".join(MIXERS)}.')


def _focal_layers(dim: int, window: int, level: int, factor: int) -> nn.ModuleList:
    return nn.ModuleList(focal_layer(dim, size) for size in kernel_sizes(window, level, factor))


def _num_heads(dim: int) -> int:
    """Maximum number of heads that divides the channels into `HEAD_DIM` or more; at least 1."""
    return next(n for n in range(max(1, dim // HEAD_DIM), 0, -1) if dim % n == 0)
