"""Helpers for autograd functions with hand-written gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

# Private to PyTorch and missing in some versions.
_is_legacy_batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', lambda tensor: False)


def without_base(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that shares the memory but is not a view.

    Autograd forbids in-place changes of a function's result if it is a view.
    """
    return tensor.new_empty(0).set_(tensor)


def first_derivatives_only(backward: Callable) -> Callable:
    """Make an autograd function's backward reject second derivatives and ignore autocast.

    PyTorch's `once_differentiable` silently returns a constant if the incoming gradient is a
    constant, for example that of a sum. Autocast in backward alone would change the types of saved
    tensors.

    Args:
        backward: The static method to wrap.

    Returns:
        A wrapper that raises RuntimeError under ``create_graph=True`` and for batched gradients.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: torch.Tensor) -> Any:
        unsupported = None
        if torch.is_grad_enabled():
            unsupported = 'second derivatives (create_graph=True)'
        elif torch._C._functorch.is_batchedtensor(grads[0]) or _is_legacy_batched(grads[0]):
            unsupported = 'batched gradients (is_grads_batched, vectorize=True)'
        if unsupported:
            raise RuntimeError(
                f'This path of FocalNet does not support {unsupported}. Compute inside '
                "`with mmfocalnet.ops.use_path('reference'):`."
            )
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return checked
