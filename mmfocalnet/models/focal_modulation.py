"""The focal modulation operator (Section 3.2 of the paper, Eq. 3-6 and Algorithm 1)."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.arguments import boolean, choice, integer, is_integer, probability
from mmfocalnet.errors import ConfigError
from mmfocalnet.models.layer_norm import normalize
from mmfocalnet.ops import ModulationWeights, is_exact_gelu, is_unmodified, linear, modulate
from mmfocalnet.text import short_repr


class FocalModulation(nn.Module):
    """Focal modulation: aggregate the context first, then interact with it once.

    For every location i the operator computes y_i = q(x_i) * h(sum_l g_i^l z_i^l) (Eq. 6) from a
    query q, a hierarchy of contexts z^l from depth-wise convolutions of growing receptive field
    (Eq. 4), gates g^l that weight the focal levels per location (Eq. 5), and a linear map h
    from the gated sum to the modulator.

    Args:
        dim: Number of channels C.
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels, each with one depth-wise convolution. Level l
            (from 0) has kernel size ``focal_window + focal_factor * l``.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.
        bias: Whether ``f`` and ``h`` have a bias. Defaults to True.
        proj_drop: Dropout rate after the output projection. Defaults to 0.
        use_postln_in_modulation: Normalise the modulated query (the huge models).
            Defaults to False.
        normalize_modulator: Divide the gated sum by the number of contexts, L + 1.
            Defaults to False.
        modulation: ``'multiply'`` the query by the modulator or ``'add'`` the modulator to it.
            Defaults to ``'multiply'``.
        use_global_context: Use the average over the image as an additional context.
            Defaults to True.
        aggregate: Sum ``'all'`` focal levels or only the last one (``'top'``), beside the global
            context. Defaults to ``'all'``.
        use_gates: Weight the contexts by gates; otherwise sum them unweighted. Defaults to True.

    The last four arguments are those of the paper's component analysis (Table 11). Their defaults
    are the paper's operator. Other values disable the fused paths of `mmfocalnet.ops`. A context
    that is not summed has no gate.

    Raises:
        ConfigError: If a kernel size would be even or not positive, ``focal_level`` is
            negative, another argument has an invalid value, or no context is left.
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
        modulation: str = 'multiply',
        use_global_context: bool = True,
        aggregate: str = 'all',
        use_gates: bool = True,
    ) -> None:
        super().__init__()
        self.dim = integer('dim', dim, minimum=1)
        sizes = kernel_sizes(focal_window, focal_level, focal_factor)
        self.focal_level = len(sizes)
        self.normalize_modulator = boolean('normalize_modulator', normalize_modulator)
        self.interaction = choice('modulation', modulation, ('multiply', 'add'))
        self.use_global_context = boolean('use_global_context', use_global_context)
        self.aggregate = choice('aggregate', aggregate, ('all', 'top'))
        self.use_gates = boolean('use_gates', use_gates)
        if not self.focal_level and not self.use_global_context:
            raise ConfigError(
                'focal_level=0 with use_global_context=False leaves no context: set focal_level '
                'to 1 or more, or use_global_context=True.'
            )
        levels = self.focal_level if aggregate == 'all' else min(self.focal_level, 1)
        self.num_contexts = levels + int(self.use_global_context)
        self.num_gates = self.num_contexts if self.use_gates else 0

        # Names and shapes of the parameters, including the 1x1 convolution h, are those of the
        # released checkpoints.
        bias = boolean('bias', bias)
        self.f = nn.Linear(self.dim, 2 * self.dim + self.num_gates, bias=bias)
        self.h = nn.Conv2d(self.dim, self.dim, kernel_size=1, bias=bias)
        self.proj = nn.Linear(self.dim, self.dim)
        self.proj_drop = nn.Dropout(probability('proj_drop', proj_drop))
        self.focal_layers = nn.ModuleList(focal_layer(self.dim, size) for size in sizes)
        use_norm = boolean('use_postln_in_modulation', use_postln_in_modulation)
        self.ln = nn.LayerNorm(self.dim) if use_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Modulate every location of ``x`` by its context (Algorithm 1).

        Args:
            x: Features (B, H, W, C).

        Returns:
            Features (B, H, W, C).
        """
        if self.can_fuse():
            x = modulate(x, self._weights())  # Eq. 3 to 6 in one operation.
        else:
            # Eq. 3, and the gates of Eq. 5: one linear map f gives query, z^0 and gates.
            query, context, gates = self.f(x).split((self.dim, self.dim, self.num_gates), dim=-1)
            # [B, H, W, C] -> [B, C, H, W]; the memory stays channels-last.
            context = context.contiguous().permute(0, 3, 1, 2)
            gates = gates.permute(0, 3, 1, 2).split(1, dim=1)  # L + 1 times [B, 1, H, W]
            gates = iter(gates) if self.use_gates else itertools.repeat(1)
            total = 0.0
            for level, layer in enumerate(self.focal_layers, start=1):
                context = layer(context)  # Eq. 4: z^l from z^{l-1}.
                if self.aggregate == 'all' or level == self.focal_level:
                    total = total + context * next(gates)  # Eq. 5
            if self.use_global_context:
                total = total + global_context(context) * next(gates)  # Eq. 5
            if self.normalize_modulator:
                total = total / self.num_contexts
            modulator = self.h(total).permute(0, 2, 3, 1)  # [B, C, H, W] -> [B, H, W, C]
            # Eq. 6, or its additive variant (Table 11).
            x = query * modulator if self.interaction == 'multiply' else query + modulator
        if self.ln is not None:
            x = normalize(self.ln, x)
        if is_unmodified(self.proj, nn.Linear):
            x = linear(x, self.proj.weight, self.proj.bias)
        else:
            x = self.proj(x)
        return self.proj_drop(x)

    def can_fuse(self) -> bool:
        """Whether `mmfocalnet.ops.modulate` computes what the layers compute.

        False for the variants of Table 11, and if a layer has a hook or was replaced.
        """
        convolutions = [layer[0] for layer in self.focal_layers]
        return (
            self.interaction == 'multiply'
            and self.use_gates
            and self.num_contexts == self.focal_level + 1
            and is_unmodified(self.f, nn.Linear)
            and all(is_unmodified(conv, nn.Conv2d) for conv in (self.h, *convolutions))
            and all(_is_depthwise(conv) for conv in convolutions)
            and self.h.kernel_size == self.h.stride == (1, 1)
            and self.h.padding == (0, 0)
            and self.h.groups == 1
            and all(is_unmodified(layer, nn.Sequential) for layer in self.focal_layers)
            and all(len(layer) == 2 and is_exact_gelu(layer[1]) for layer in self.focal_layers)
        )

    def _weights(self) -> ModulationWeights:
        return ModulationWeights(
            self.f.weight,
            self.f.bias,
            tuple(layer[0].weight for layer in self.focal_layers),
            self.h.weight,
            self.h.bias,
            self.normalize_modulator,
        )


def kernel_sizes(focal_window: int, focal_level: int, focal_factor: int = 2) -> tuple[int, ...]:
    """Compute the kernel size of each focal level.

    Args:
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.

    Returns:
        L odd sizes.

    Raises:
        ConfigError: If a kernel size would be even or not positive, or ``focal_level`` is
            negative.
    """
    focal_level = integer('focal_level', focal_level, minimum=0, maximum=64)
    if not is_integer(focal_window) or focal_window < 1 or focal_window % 2 == 0:
        raise ConfigError(
            f'focal_window must be an odd positive number, got {short_repr(focal_window)}: '
            'even kernels have no centre. Use for example 3, 5, 7 or 9.'
        )
    if not is_integer(focal_factor) or focal_factor < 0 or focal_factor % 2:
        raise ConfigError(
            f'focal_factor must be an even integer, at least 0, got {short_repr(focal_factor)}: '
            'an odd factor makes every second kernel even.'
        )
    return tuple(int(focal_window + focal_factor * level) for level in range(focal_level))


def focal_layer(dim: int, kernel_size: int) -> nn.Sequential:
    """Build one focal level (Eq. 4): depth-wise convolution and GELU of (B, C, H, W)."""
    conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
    return nn.Sequential(conv, nn.GELU())


def global_context(context: Tensor) -> Tensor:
    """Average the last level's context (B, C, H, W) over the image: (B, C, 1, 1)."""
    return F.gelu(context.mean(dim=(2, 3), keepdim=True))


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depth-wise, without bias, and keeps the size."""
    size = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels
        and conv.bias is None
        and conv.kernel_size == (size, size)
        and conv.padding == (size // 2, size // 2)
        and conv.padding_mode == 'zeros'
        and conv.stride == conv.dilation == (1, 1)
    )
