"""What hand-written gradients have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def first_derivatives_only(backward: Callable) -> Callable:
    """Let an autograd function's backward refuse second derivatives, and autocast leave it be.

    PyTorch's own `once_differentiable` gives a constant instead of an error where the incoming
    gradient is one, as that of a sum is. Autocast may be on in backward though it was off in
    forward; its types would not be those that were kept.

    Args:
        backward: The static method to wrap.

    Returns:
        The same, raising RuntimeError where it is called with ``create_graph=True``.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'This path of FocalNet has no second derivatives (create_graph=True); compute '
                "inside `with mmfocalnet.ops.use_path('plain'):` to have them."
            )
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return refusing
