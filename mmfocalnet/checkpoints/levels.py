"""Add focal levels to a modulation: pure functions on the tensors of one operator.

A modulation is the dict of its tensors: ``f.weight`` (2C + L + 1, C) and ``f.bias``, whose
rows are query (C), context (C), gates of the L levels and gate of the global context;
``h.weight`` (C, C, 1, 1); ``focal_layers.{l}.0.weight`` (C, 1, k, k) for level l from 0.
Context l is GELU(kernel l * context l - 1), the global one GELU(mean of the last context).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmfocalnet.checkpoints.layouts import State
from mmfocalnet.errors import CheckpointError

# So small that GELU(u) equals u / 2 in float32, and within 1e-12 in float64; a power of two, so
# that scaling by it and back rounds nothing.
_SMALL = 2.0**-40


def append_levels(
    modulation: Mapping[str, Tensor], sizes: Sequence[int], normalize_modulator: bool = False
) -> State:
    """Add focal levels with zero gates after the last one.

    The query, the focal levels and their gates are kept. The global context is the average of the
    last level, so it changes: a new level adds a GELU, which no kernel can undo (see
    docs/checkpoints.md). The new kernels are a centred 1, the best approximation: it shrinks
    contexts around zero and keeps large ones.

    Args:
        modulation: Tensors of one operator with L levels.
        sizes: Kernel size of each new level, odd.
        normalize_modulator: Whether the operator divides by L + 1; h is scaled to compensate.
            Defaults to False.

    Returns:
        Tensors of one operator with L + len(sizes) levels.
    """
    levels = count_levels(modulation)
    added = _add_gates(modulation, levels, len(sizes), normalize_modulator)
    dim = modulation['f.weight'].shape[1]
    for level, size in enumerate(sizes, start=levels):
        added[_kernel(level)] = _centred(1.0, dim, size).to(modulation['f.weight'])
    return added


def insert_levels(
    modulation: Mapping[str, Tensor],
    sizes: Sequence[int],
    normalize_modulator: bool = False,
    name: str = 'The checkpoint',
) -> State:
    """Add focal levels with zero gates before the last one, and keep the function.

    GELU(u) is u / 2 for tiny u. The first new kernel has a tiny number at its centre, which scales
    the context down, into the linear range of GELU; the kernel of the last level scales it up
    again. The result is equal up to the rounding of float32, bfloat16 or float64 (relative error
    below 1e-12 per unit of context).

    The scaled kernel overflows in float16 and is too steep for training. Use it for inference and
    comparison, and `append_levels` for training.

    Args:
        modulation: Tensors of one operator with L levels, 1 or more.
        sizes: Kernel size of each new level, odd. The last level's kernel keeps its size.
        normalize_modulator: Whether the operator divides by L + 1; h is scaled to compensate.
            Defaults to False.
        name: Name of the checkpoint, for the error message. Defaults to ``'The checkpoint'``.

    Returns:
        Tensors of one operator with L + len(sizes) levels; scaled ones in float32 or wider.

    Raises:
        CheckpointError: If the modulation has no level.
    """
    levels = count_levels(modulation)
    if not levels:
        raise CheckpointError(
            f'{name} has no focal level, and levels that keep the function are inserted before '
            'the last one. Add them without keep_function (--keep-function).'
        )
    added = _add_gates(modulation, levels, len(sizes), normalize_modulator, before=1)
    last = modulation[_kernel(levels - 1)]
    last = last.to(torch.promote_types(last.dtype, torch.float32))
    scale = _SMALL
    for level, size in enumerate(sizes, start=levels - 1):
        added[_kernel(level)] = _centred(scale, len(last), size).to(last)
        scale = 1.0
    added[_kernel(levels - 1 + len(sizes))] = last * (2.0 ** len(sizes) / _SMALL)
    return added


def count_levels(modulation: Mapping[str, Tensor]) -> int:
    """Number L of focal levels of a modulation, read from its gates."""
    rows, dim = modulation['f.weight'].shape
    return rows - 2 * dim - 1


def _add_gates(
    modulation: Mapping[str, Tensor],
    levels: int,
    count: int,
    normalize_modulator: bool,
    before: int = 0,
) -> State:
    """Add rows of zeros before the gates of the last ``before`` levels and the global one."""
    added = dict(modulation)
    for name in ('f.weight', 'f.bias'):
        if name in modulation:
            rows = modulation[name]
            split = len(rows) - 1 - before
            zeros = rows.new_zeros(count, *rows.shape[1:])
            added[name] = torch.cat([rows[:split], zeros, rows[split:]])
    if normalize_modulator and 'h.weight' in modulation:
        added['h.weight'] = modulation['h.weight'] * ((levels + count + 1) / (levels + 1))
    return added


def _centred(value: float, dim: int, size: int) -> Tensor:
    kernel = torch.zeros(dim, 1, size, size)
    kernel[:, :, size // 2, size // 2] = value
    return kernel


def _kernel(level: int) -> str:
    return f'focal_layers.{level}.0.weight'
