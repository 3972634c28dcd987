"""What hand-written gradients have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

# Private to PyTorch, and not sure to be there in every version; training must not depend on it.
_is_legacy_batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', lambda tensor: False)


def without_base(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as a tensor that is no view.

    Autograd forbids to change what a function returns in place where that is a view.
    """
    return tensor.new_empty(0).set_(tensor)


def first_derivatives_only(backward: Callable) -> Callable:
    """Let an autograd function's backward refuse second derivatives, and autocast leave it be.

    PyTorch's own `once_differentiable` gives a constant instead of an error where the incoming
    gradient is one, as that of a sum is. Autocast may be on in backward though it was off in
    forward; its types would not be those that were kept.

    Args:
        backward: The static method to wrap.

    Returns:
        The same, raising RuntimeError where it is called with ``create_graph=True`` or for many
        gradients at once.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grads: torch.Tensor) -> Any:
        for unable, what in (
            (torch.is_grad_enabled(), 'second derivatives (create_graph=True)'),
            (_is_batched(grads[0]), 'batched gradients (is_grads_batched, vectorize=True)'),
        ):
            if unable:
                raise RuntimeError(
                    f'This path of FocalNet has no {what}; compute inside '
                    "`with mmfocalnet.ops.use_path('plain'):` to have them."
                )
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return refusing


def _is_batched(grad: torch.Tensor) -> bool:
    return torch._C._functorch.is_batchedtensor(grad) or _is_legacy_batched(grad)
