"""The focal modulation operator (Section 3.2 of the paper, Eq. 3-6 and Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from mmfocalnet.arguments import boolean, choice, integer, is_integer, probability
from mmfocalnet.errors import ConfigError
from mmfocalnet.ops import (
    ModulationWeights,
    gated_sum,
    is_exact_gelu,
    linear,
    modulate,
    runs_as_it_stands,
)
from mmfocalnet.text import short_repr


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
        normalize_modulator: Divide the gated sum by the number of contexts, L + 1.
            Defaults to False.
        modulation: What the modulator does to the query: ``'multiply'``, or ``'add'``, which
            makes it a bias. Defaults to ``'multiply'``.
        use_global_context: Add the average over the image. Defaults to True.
        aggregate: Which focal levels are summed: ``'all'``, or the last alone (``'top'``),
            beside the global context. Defaults to ``'all'``.
        use_gates: Weight the contexts per location; without gates they are summed as they
            are. Defaults to True.

    The last four are the component analysis of the paper, whose choices are the defaults;
    with any other the operator runs layer by layer. A context that is left out has no gate.

    Raises:
        ConfigError: If a kernel size would be even or not positive, ``focal_level`` is
            negative, a switch has another value, or no context is left.
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
        dim = integer('dim', dim, minimum=1)
        sizes = kernel_sizes(focal_window, focal_level, focal_factor)
        focal_level, bias = len(sizes), boolean('bias', bias)
        use_global_context = boolean('use_global_context', use_global_context)
        if not focal_level and not use_global_context:
            raise ConfigError(
                'focal_level=0 with use_global_context=False leaves no context to modulate by: '
                'give 1 focal level or more, or the global context.'
            )
        self.dim = dim
        self.focal_level = focal_level
        self.normalize_modulator = boolean('normalize_modulator', normalize_modulator)
        self.modulation = choice('modulation', modulation, ('multiply', 'add'))
        self.use_global_context = use_global_context
        self.aggregate = choice('aggregate', aggregate, ('all', 'top'))
        self.use_gates = boolean('use_gates', use_gates)
        levels = focal_level if aggregate == 'all' else min(focal_level, 1)
        self.num_contexts = levels + int(use_global_context)

        # Parameter names and shapes (the 1x1 convolution h among them) are those of the
        # released checkpoints.
        self.num_gates = self.num_contexts if use_gates else 0
        self.f = nn.Linear(dim, 2 * dim + self.num_gates, bias=bias)
        self.h = nn.Conv2d(dim, dim, kernel_size=1, bias=bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(probability('proj_drop', proj_drop))
        self.focal_layers = nn.ModuleList(focal_layer(dim, size) for size in sizes)
        normalizes = boolean('use_postln_in_modulation', use_postln_in_modulation)
        self.ln = nn.LayerNorm(dim) if normalizes else None

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
            self._has_all_components()
            and runs_as_it_stands(self.f, nn.Linear)
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
        sizes = (self.dim, self.dim, self.num_gates)
        query, context, gates = self.f(x).split(sizes, dim=-1)
        if self._has_all_components():
            total = gated_sum(context, gates, self.focal_layers)
        else:
            total = self._sum(context, gates)
        if self.normalize_modulator:
            total = total / self.num_contexts
        modulator = self.h(total.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return query * modulator if self.modulation == 'multiply' else query + modulator

    def _has_all_components(self) -> bool:
        multiplies = self.modulation == 'multiply'
        return multiplies and self.use_gates and self.num_contexts == self.focal_level + 1

    def _sum(self, context: Tensor, gates: Tensor) -> Tensor:
        """Sum those contexts that the switches leave, with gates or without (B, H, W, C)."""
        contexts = self._contexts(context.contiguous().permute(0, 3, 1, 2))
        if self.use_gates:
            per_context = gates.permute(0, 3, 1, 2).split(1, dim=1)
            contexts = (z * gate for z, gate in zip(contexts, per_context, strict=True))
        return sum(contexts).permute(0, 2, 3, 1)

    def _contexts(self, context: Tensor) -> Iterator[Tensor]:
        for level, layer in enumerate(self.focal_layers, 1):
            context = layer(context)
            if self.aggregate == 'all' or level == self.focal_level:
                yield context
        if self.use_global_context:
            yield global_context(context)


def kernel_sizes(focal_window: int, focal_level: int, focal_factor: int = 2) -> tuple[int, ...]:
    """The kernel size of each focal level, which must have a centre.

    Args:
        focal_window: Kernel size at the first focal level; odd and positive.
        focal_level: Number L of focal levels.
        focal_factor: Growth of the kernel size per focal level; even. Defaults to 2.

    Returns:
        L sizes.

    Raises:
        ConfigError: If a kernel size would be even or not positive, or ``focal_level`` is
            negative.
    """
    focal_level = integer('focal_level', focal_level, minimum=0)
    if not is_integer(focal_window) or focal_window < 1 or focal_window % 2 == 0:
        raise ConfigError(
            f'focal_window must be an odd positive number, got {short_repr(focal_window)}: '
            'an even kernel has no centre; use e.g. 3, 5, 7 or 9.'
        )
    if not is_integer(focal_factor) or focal_factor < 0 or focal_factor % 2:
        raise ConfigError(
            f'focal_factor must be an even number, 0 or more, got {short_repr(focal_factor)}: '
            'an odd step makes every second kernel even.'
        )
    window = integer('focal_window', focal_window, minimum=1)
    factor = integer('focal_factor', focal_factor, minimum=0)
    return tuple(window + factor * level for level in range(focal_level))


def focal_layer(dim: int, kernel_size: int) -> nn.Sequential:
    """Make one focal level (Eq. 4), a map of (B, C, H, W): depth-wise convolution and GELU."""
    conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)
    return nn.Sequential(conv, nn.GELU())


def global_context(context: Tensor) -> Tensor:
    """Average the last level's context (B, C, H, W) over the image, to (B, C, 1, 1)."""
    return F.gelu(context.mean(dim=(2, 3), keepdim=True))


def _is_depthwise(conv: nn.Conv2d) -> bool:
    size = conv.kernel_size[0]
    same_size = conv.kernel_size == (size, size) and conv.padding == (size // 2, size // 2)
    unit_steps = conv.stride == conv.dilation == (1, 1)
    usual = same_size and unit_steps and conv.padding_mode == 'zeros'
    return usual and conv.groups == conv.in_channels and conv.bias is None
