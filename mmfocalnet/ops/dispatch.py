"""Choice of the path that computes an operator.

Each operator has one ordered list of paths. The first path that can run a call runs it, except that
on GPUs the fastest path of a focal modulation is measured.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from mmfocalnet.compat.tracing import is_compiling, is_exporting
from mmfocalnet.errors import ConfigError
from mmfocalnet.ops import (
    channels_first_path,
    fourier_path,
    layers,
    measured,
    numba_path,
    pytorch_path,
    reference,
    triton_path,
)
from mmfocalnet.ops.call import Call, autocast_dtype
from mmfocalnet.ops.fused_operator import CAN_COMPILE, CAN_COMPILE_TRITON


class OperatorPath(NamedTuple):
    """One implementation of an operator."""

    name: str
    unsupported: Callable[[Call], str | None]  # Why the path cannot run a call; None if it can.
    run: Callable[..., Tensor]
    automatic: bool = True  # False: runs only if it is requested or measured to be the fastest.


# Fastest first. The reference runs everywhere.
MODULATION = (
    OperatorPath('triton', triton_path.unsupported, triton_path.modulate),
    OperatorPath('numba', numba_path.unsupported, numba_path.modulate),
    OperatorPath('pytorch', pytorch_path.unsupported, pytorch_path.modulate),
    OperatorPath('triton_2', triton_path.unsupported, triton_path.modulate_2_warps, False),
    OperatorPath('triton_8', triton_path.unsupported, triton_path.modulate_8_warps, False),
    OperatorPath('channels_first', Call.unusual_input, channels_first_path.modulate, False),
    OperatorPath('fourier', Call.unusual_input, fourier_path.modulate, False),
    OperatorPath('reference', lambda call: None, reference.modulate),
)
LINEAR = (
    OperatorPath('pytorch', layers.unsupported, layers.linear),
    OperatorPath('reference', lambda call: None, F.linear),
)
LAYER_NORM = (
    OperatorPath('pytorch', layers.unsupported_layer_norm, layers.layer_norm),
    OperatorPath('reference', lambda call: None, reference.layer_norm),
)
FEED_FORWARD = (
    OperatorPath('pytorch', layers.unsupported, layers.feed_forward),
    OperatorPath('reference', lambda call: None, reference.feed_forward),
)
PATCH_EMBEDDING = (
    OperatorPath('pytorch', layers.unsupported, layers.embed_patches),
    OperatorPath('reference', lambda call: None, reference.embed_patches),
)
OPERATORS = {
    'modulate': MODULATION,
    'linear': LINEAR,
    'layer_norm': LAYER_NORM,
    'feed_forward': FEED_FORWARD,
    'embed_patches': PATCH_EMBEDDING,
}
PATHS = tuple(path.name for path in MODULATION)

_requested: contextvars.ContextVar[str | None] = contextvars.ContextVar('path', default=None)


def modulate(x: Tensor, weights: reference.ModulationWeights) -> Tensor:
    """Compute q(x) * h(sum_l g^l z^l) (Eq. 3 to 6) by the fastest available path.

    On GPUs, the paths are measured at the first call of each kind (`mmfocalnet.ops.measured`).

    Args:
        x: Features (B, H, W, C).
        weights: Weights of f, the focal levels and h.

    Returns:
        Features (B, H, W, C).

    Raises:
        ConfigError: If the path requested by `use_path` cannot run this call.
    """
    linear_weights = [weights.f_weight, weights.f_bias, weights.h_weight, weights.h_bias]
    path = _choose(MODULATION, x, linear_weights, weights.kernels)
    if not is_compiling() and _is_measured(path, x):
        candidates = functools.partial(_candidates, x, linear_weights, weights.kernels)
        path = measured.fastest(x, weights, candidates) or path
    return path.run(x, weights)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a linear layer by the fastest available path.

    Args:
        x: Features (..., C).
        weight: (D, C).
        bias: Bias (D), or None.

    Returns:
        Features (..., D).

    Raises:
        ConfigError: If the path requested by `use_path` cannot run this call.
    """
    return _choose(LINEAR, x, [weight, bias]).run(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute a LayerNorm over the last dimension by the fastest path for compilers.

    In eager mode, ``torch.nn.LayerNorm`` is as fast.

    Args:
        x: Features (..., C).
        weight: Factors (C).
        bias: Bias (C).
        eps: Number that is added to the variance. Defaults to 1e-5.

    Returns:
        Features (..., C).

    Raises:
        ConfigError: If the path requested by `use_path` cannot run this call.
    """
    return _choose(LAYER_NORM, x, [weight, bias]).run(x, weight, bias, eps)


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """Compute Linear, GELU, Linear by the fastest available path.

    Args:
        x: Features (..., C).
        fc1_weight: (D, C), where D is the hidden width.
        fc1_bias: Bias (D), or None.
        fc2_weight: (C, D).
        fc2_bias: Bias (C), or None.

    Returns:
        Features (..., C).

    Raises:
        ConfigError: If the path requested by `use_path` cannot run this call.
    """
    path = _choose(FEED_FORWARD, x, [fc1_weight, fc1_bias, fc2_weight, fc2_bias])
    return path.run(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)


def embed_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Embed disjoint patches of S x S pixels by the fastest available path.

    Args:
        x: Images or features (B, C, H, W), where H and W are multiples of S.
        weight: (D, C, S, S).
        bias: Bias (D), or None.

    Returns:
        Features (B, H / S, W / S, D).

    Raises:
        ConfigError: If the path requested by `use_path` cannot run this call.
    """
    return _choose(PATCH_EMBEDDING, x, [weight, bias]).run(x, weight, bias)


@contextlib.contextmanager
def use_path(name: str) -> Iterator[None]:
    """Request one path for all operators inside a ``with`` block.

    Operators that do not have the path choose as usual: linear layers, norms, MLPs and patch
    embeddings have a ``pytorch`` and a ``reference`` path only. Compiled code keeps the path that
    is requested when it is compiled. Exporters, tracers, counters of FLOPs and transforms of
    `torch.func` always use the reference.

    Args:
        name: One of `PATHS`. ``'triton_2'`` and ``'triton_8'`` are ``'triton'`` with another
            number of warps. ``'plain'`` is the deprecated name of ``'reference'``.

    Raises:
        ConfigError: If there is no such path, or, when an operator is called, if the path
            cannot run the call.
    """
    if name == 'plain':
        warnings.warn(
            "use_path('plain') is deprecated: use 'reference'.", DeprecationWarning, stacklevel=3
        )
        name = 'reference'
    if name not in PATHS:
        raise ConfigError(f'Unknown path {name!r}: choose from {", ".join(PATHS)}.')
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def keep_path(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Bind a function to the path that is requested now.

    Activation checkpointing calls the function again in backward, possibly outside the
    ``with use_path`` block of the forward pass.

    Args:
        function: Function that calls operators.

    Returns:
        The same function, with the current request for a path.
    """
    if is_compiling():
        return function
    requested = _requested.get()

    @functools.wraps(function)
    def bound(*args: Any) -> Tensor:
        token = _requested.set(requested)
        try:
            return function(*args)
        finally:
            _requested.reset(token)

    return bound


def explain(
    shape: Sequence[int],
    focal_window: int,
    focal_level: int,
    focal_factor: int = 2,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = 'cpu',
) -> str:
    """Explain which path computes a focal modulation and why faster ones are skipped.

    For a GPU, the paths that run for measured kinds of calls follow.

    Args:
        shape: Shape of the features (B, H, W, C).
        focal_window: Kernel size at the first focal level.
        focal_level: Number of focal levels.
        focal_factor: Growth of the kernel size per focal level. Defaults to 2.
        dtype: Type of the features. Defaults to float32.
        device: Such as ``'cpu'`` or ``'cuda'``. Defaults to ``'cpu'``.

    Returns:
        One line per path, down to the one that runs where nothing is measured, and one line per
        measured kind of calls.
    """
    device = torch.device(device).type
    sizes = tuple(focal_window + focal_factor * level for level in range(focal_level))
    autocast = device == 'cpu' and autocast_dtype('cpu') is not None
    call = Call(sizes, dtype, device, autocast, empty=0 in shape)
    path, skipped = _first_supported(MODULATION, call)
    kind = measured.describe_call(shape[-1], sizes, math.prod(shape[:-1]), dtype)
    times = measured.describe_times(kind, device)
    condition = ' where nothing is measured' if times else ''
    return '\n'.join([*skipped, f'{path.name}: runs{condition}', *times])


def _is_measured(path: OperatorPath, x: Tensor) -> bool:
    """Whether a path may be replaced by one that is measured to be faster."""
    is_required = path is MODULATION[-1] or path.name == _requested.get()
    return not is_required and measured.is_enabled(x)


def _candidates(
    x: Tensor, weights: Sequence[Tensor | None], kernels: Sequence[Tensor]
) -> list[OperatorPath]:
    call = Call.of(x, _given(weights), kernels)
    return [path for path in MODULATION if path.unsupported(call) is None]


def _given(weights: Sequence[Tensor | None]) -> list[Tensor]:
    return [weight for weight in weights if weight is not None]


def _choose(
    paths: tuple[OperatorPath, ...],
    x: Tensor,
    weights: Sequence[Tensor | None],
    kernels: Sequence[Tensor] = (),
) -> OperatorPath:
    tensors = _given(weights)
    if is_compiling():
        return paths[_choose_for_compiler(paths[0].run.__name__, *Call.of(x, tensors, kernels))]
    if _is_traced():
        return paths[-1]
    return _choose_for(paths, Call.of(x, tensors, kernels), _requested.get())


@torch.compiler.assume_constant_result
def _choose_for_compiler(operator: str, *call: Any) -> int:
    """Return the index of the path of an operator for a `Call`.

    Compilers run this function instead of tracing it. They pass and return simple constants only.
    """
    paths = OPERATORS[operator]
    # FocalNet in exported programs consists of PyTorch's own operators.
    if is_exporting() or _is_traced():
        return len(paths) - 1
    path = _choose_for(paths, Call(*call), _requested.get())
    compiles = CAN_COMPILE_TRITON if path.name.startswith('triton') else CAN_COMPILE
    return paths.index(path) if compiles else len(paths) - 1


def _is_traced() -> bool:
    """Whether PyTorch's operations are recorded or transformed one by one.

    Such tracers, dispatch modes (for example FLOPs counters), transforms of torch.func and
    forward-mode derivatives only understand the reference.
    """
    return (
        torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


@functools.lru_cache(maxsize=1024)
def _choose_for(paths: tuple[OperatorPath, ...], call: Call, requested: str | None) -> OperatorPath:
    for path in paths:
        if path.name == requested:
            reason = path.unsupported(call)
            if reason:
                raise ConfigError(f'Path {path.name!r} cannot run here: {reason}.')
            return path
    path, skipped = _first_supported(paths, call)
    for line in skipped:
        print_log(f'{call}: {line}', logger='current', level=logging.DEBUG)
    return path


def _first_supported(paths: tuple[OperatorPath, ...], call: Call) -> tuple[OperatorPath, list[str]]:
    """Return the first path that can run a call, and a line for each path that was skipped."""
    skipped: list[str] = []
    for path in filter(attrgetter('automatic'), paths[:-1]):
        reason = path.unsupported(call)
        if reason is None:
            return path, skipped
        skipped.append(f'{path.name}: skipped, {reason}')
    return paths[-1], skipped
