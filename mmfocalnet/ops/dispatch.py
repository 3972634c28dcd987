"""Which path computes an operator: one ordered list each, of which the first that can runs."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from mmfocalnet.errors import ConfigError
from mmfocalnet.ops import numba_path, plain, pytorch_path, triton_path
from mmfocalnet.ops.case import Case, autocast_on_cpu


class Path(NamedTuple):
    """One way to compute an operator."""

    name: str
    reason_not: Callable[[Case], str | None]  # A clause, or None where the path can run.
    run: Callable[..., Tensor]


# Fastest first; the last one always can.
MODULATION = (
    Path('triton', triton_path.reason_not, triton_path.modulate),
    Path('numba', numba_path.reason_not, numba_path.modulate),
    Path('pytorch', pytorch_path.reason_not, pytorch_path.modulate),
    Path('plain', lambda case: None, plain.modulate),
)
LINEAR = (
    Path('pytorch', pytorch_path.reason_not_linear, pytorch_path.linear),
    Path('plain', lambda case: None, F.linear),
)
FEED_FORWARD = (
    Path('pytorch', pytorch_path.reason_not_linear, pytorch_path.feed_forward),
    Path('plain', lambda case: None, plain.feed_forward),
)
PATHS = tuple(path.name for path in MODULATION)

# PyTorch before 2.3 has it in another place.
_is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling
_asked_for: contextvars.ContextVar[str | None] = contextvars.ContextVar('path', default=None)


def modulate(x: Tensor, weights: plain.ModulationWeights) -> Tensor:
    """Compute q(x) * h(sum_l g^l z^l) (Eq. 3 to 6) by the fastest path that can.

    Args:
        x: Features (B, H, W, C).
        weights: Weights of f, the focal levels and h.

    Returns:
        Features (B, H, W, C).

    Raises:
        ConfigError: If a path was asked for by `use_path` that cannot run here.
    """
    plain_weights = [weights.f_weight, weights.f_bias, weights.h_weight, weights.h_bias]
    return _choose(MODULATION, x, plain_weights, weights.kernels).run(x, weights)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a linear layer by the fastest path that can.

    Args:
        x: Features (..., C).
        weight: (D, C).
        bias: (D) or None.

    Returns:
        Features (..., D).

    Raises:
        ConfigError: If a path was asked for by `use_path` that cannot run here.
    """
    return _choose(LINEAR, x, [weight, bias]).run(x, weight, bias)


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """Compute Linear, GELU, Linear by the fastest path that can.

    Args:
        x: Features (..., C).
        fc1_weight: (D, C), D being the hidden width.
        fc1_bias: (D) or None.
        fc2_weight: (C, D).
        fc2_bias: (C) or None.

    Returns:
        Features (..., C).

    Raises:
        ConfigError: If a path was asked for by `use_path` that cannot run here.
    """
    path = _choose(FEED_FORWARD, x, [fc1_weight, fc1_bias, fc2_weight, fc2_bias])
    return path.run(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)


@contextlib.contextmanager
def use_path(name: str) -> Iterator[None]:
    """Compute by the path of this name alone, inside a ``with`` block.

    A compiler, a tracer and whatever else `_is_watched` names get the plain path all the same.
    An operator that has no path of this name (the MLP and the linear layer have no ``triton``
    and no ``numba``) chooses as usual.

    Args:
        name: ``'triton'``, ``'numba'``, ``'pytorch'`` or ``'plain'``.

    Raises:
        ConfigError: If there is no such path; later, where it cannot run.
    """
    if name not in PATHS:
        raise ConfigError(f'There is no path {name!r}; there are {", ".join(PATHS)}.')
    token = _asked_for.set(name)
    try:
        yield
    finally:
        _asked_for.reset(token)


def keep_path(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Bind a function to the path asked for now, if any.

    What activation checkpointing computes again in backward is to go the way it went before.

    Args:
        function: What calls operators.

    Returns:
        The same function, with the path that was asked for, or none.
    """
    if _is_compiling():
        return function
    asked_for = _asked_for.get()

    @functools.wraps(function)
    def bound(*args: Any) -> Tensor:
        token = _asked_for.set(asked_for)
        try:
            return function(*args)
        finally:
            _asked_for.reset(token)

    return bound


def explain(
    shape: Sequence[int],
    focal_window: int,
    focal_level: int,
    focal_factor: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str = 'cpu',
) -> str:
    """Tell which path computes a focal modulation, and why those before it do not.

    Args:
        shape: Of the features (B, H, W, C).
        focal_window: Kernel size at the first focal level.
        focal_level: Number of focal levels.
        focal_factor: Growth of the kernel size per focal level. Defaults to 2.
        dtype: Of the features. Defaults to float32.
        device: ``'cpu'`` or ``'cuda'``. Defaults to ``'cpu'``.

    Returns:
        One line per path, down to the one that runs.
    """
    sizes = tuple(focal_window + focal_factor * level for level in range(focal_level))
    autocast = device == 'cpu' and autocast_on_cpu()
    path, skipped = _first_able(MODULATION, Case(tuple(shape), sizes, dtype, device, autocast))
    return '\n'.join([*skipped, f'{path.name}: runs'])


def _choose(
    paths: tuple[Path, ...],
    x: Tensor,
    weights: Sequence[Tensor | None],
    kernels: Sequence[Tensor] = (),
) -> Path:
    # A compiler would otherwise follow the choice as well.
    if _is_compiling() or _is_watched():
        return paths[-1]
    case = Case.of(x, [weight for weight in weights if weight is not None], kernels)
    return _choose_for(paths, case, _asked_for.get())


def _is_watched() -> bool:
    """Tell whether something records or transforms PyTorch's operations, one by one.

    Tracers, counters of FLOPs (modes), the transforms of torch.func and forward-mode derivatives
    see the plain path only.
    """
    return (
        torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


@functools.lru_cache(maxsize=1024)
def _choose_for(paths: tuple[Path, ...], case: Case, asked_for: str | None) -> Path:
    for path in paths:
        if path.name == asked_for:
            reason = path.reason_not(case)
            if reason:
                raise ConfigError(f'The path {path.name!r} cannot run here: {reason}.')
            return path
    path, skipped = _first_able(paths, case)
    for line in skipped:
        print_log(f'{tuple(case.shape)}: {line}', logger='current', level=logging.DEBUG)
    return path


def _first_able(paths: tuple[Path, ...], case: Case) -> tuple[Path, list[str]]:
    skipped = []
    for path in paths:
        reason = path.reason_not(case)
        if reason is None:
            return path, skipped
        skipped.append(f'{path.name}: not used, {reason}')
    raise AssertionError('the last path always can')
