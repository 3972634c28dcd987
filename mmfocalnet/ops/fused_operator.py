"""Operators with hand-written gradients, for eager mode and for compilers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from mmfocalnet.compat.tracing import is_compiling

# Private to PyTorch and missing in some versions, such as 2.3.
_is_legacy_batched = getattr(
    torch._C._functorch,
    'is_legacy_batchedtensor',
    lambda tensor: not torch._C._has_storage(tensor),
)
# Whether compilers can use custom operators (PyTorch 2.4), and those of Triton kernels (2.6).
CAN_COMPILE = hasattr(torch.library, 'custom_op')
CAN_COMPILE_TRITON = hasattr(torch.library, 'triton_op')

# Without this tag, Inductor copies inputs that are views, and computes what they view twice.
_accepted = signature(torch.library.custom_op).parameters if CAN_COMPILE else ()
_LAYOUT = dict(tags=torch.Tag.flexible_layout) if 'tags' in _accepted else {}

FORWARD = '(Tensor[] tensors, float constant, bool keep) -> Tensor[]'
BACKWARD = (
    '(Tensor grad, Tensor[] tensors, Tensor[] kept, bool[] wanted, float constant) -> Tensor[]'
)


class FusedOperator:
    """An operator that computes one tensor from several, and its gradients.

    In eager mode it is an autograd function, which has the smallest overhead. Compilers see two
    custom operators of `torch.library`, one for each direction.

    Args:
        name: Name in ``torch.ops.mmfocalnet``.
        forward: Computes ``(out, kept)`` from ``(tensors, constant, keep)``: the result, and the
            new tensors that backward needs; an empty list unless ``keep``.
        backward: Computes the gradients from ``(grad, tensors, kept, wanted, constant)``; None
            for those that are not wanted.
        shapes: Computes the shapes of ``[out, *kept]`` from the arguments of ``forward``, whose
            types are that of the first tensor. None: ``forward`` consists of Triton kernels and
            PyTorch's operators, which compilers trace.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., tuple[Tensor, list[Tensor]]],
        backward: Callable[..., Sequence[Tensor | None]],
        shapes: Callable[..., list[Sequence[int]]] | None,
    ) -> None:
        self.forward, self.backward, self._shapes = forward, backward, shapes
        if not (CAN_COMPILE if shapes else CAN_COMPILE_TRITON):
            return
        define = partial(torch.library.custom_op, **_LAYOUT) if shapes else torch.library.triton_op
        name = f'mmfocalnet::{name}'
        self._forward_op = define(name, self._list_outputs, mutates_args=(), schema=FORWARD)
        self._backward_op = define(
            f'{name}_backward', self._list_grads, mutates_args=(), schema=BACKWARD
        )
        self._forward_op.register_autograd(self._op_backward, setup_context=_keep_tensors)
        if shapes:
            self._forward_op.register_fake(self._fake_outputs)
            self._backward_op.register_fake(_fake_grads)

    def __call__(self, *tensors: Tensor, constant: float) -> Tensor:
        """Compute the operator; ``constant`` is a number that has no gradient."""
        # Inside an autograd function gradients are always disabled.
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if is_compiling():
            # With an additional dimension: Inductor saves tensors of four dimensions as images in
            # channels-last memory, which it copies before and after each operator.
            x, *weights = tensors
            return self._forward_op([x.unsqueeze(0), *weights], constant, keep)[0].squeeze(0)
        return _Function.apply(self, constant, keep, *tensors)

    def _list_outputs(self, tensors: Sequence[Tensor], constant: float, keep: bool) -> list[Tensor]:
        x, *weights = tensors
        with _no_autocast(x):
            out, kept = self.forward((x.squeeze(0), *weights), constant, keep)
        return [out.unsqueeze(0), *kept]

    def _fake_outputs(self, tensors: Sequence[Tensor], constant: float, keep: bool) -> list[Tensor]:
        x, *weights = tensors
        out, *kept = self._shapes((x.squeeze(0), *weights), constant, keep)
        return [x.new_empty(shape) for shape in ((1, *out), *kept)]

    def _list_grads(
        self,
        grad: Tensor,
        tensors: Sequence[Tensor],
        kept: Sequence[Tensor],
        wanted: Sequence[bool],
        constant: float,
    ) -> list[Tensor]:
        x, *weights = tensors
        with _no_autocast(grad):
            grads = self.backward(grad.squeeze(0), (x.squeeze(0), *weights), kept, wanted, constant)
        found = [tensor.contiguous() for tensor in grads if tensor is not None]
        return [found[0].unsqueeze(0), *found[1:]] if wanted[0] else found

    def _op_backward(self, ctx: Any, grads: Sequence[Tensor]) -> tuple:
        tensors, kept = _saved(ctx)
        wanted = ctx.needs_input_grad[0]
        found = iter(self._backward_op(grads[0], tensors, kept, wanted, ctx.constant))
        return [next(found) if want else None for want in wanted], None, None


def _keep_tensors(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    tensors, ctx.constant, _ = inputs
    ctx.inputs = len(tensors)
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)  # of the tensors that are only kept


def _saved(ctx: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the operator's inputs and what its forward kept; saved tensors are read once only."""
    saved = list(ctx.saved_tensors)
    return saved[: ctx.inputs], saved[ctx.inputs :]


def _fake_grads(
    grad: Tensor,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    constant: float,
) -> list[Tensor]:
    pairs = zip(tensors, wanted, strict=True)
    return [tensor.new_empty(tensor.shape) for tensor, want in pairs if want]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operator: FusedOperator, constant: float, keep: bool, *tensors: Tensor
    ) -> Tensor:
        # Triton launches kernels on the current device.
        with _no_autocast(tensors[0]), torch.cuda.device_of(tensors[0]):
            out, kept = operator.forward(tensors, constant, keep)
        ctx.operator, ctx.constant, ctx.inputs = operator, constant, len(tensors)
        ctx.save_for_backward(*tensors, *kept)
        # Autograd forbids in-place changes of a function's result if it is a view.
        return out.new_empty(0).set_(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_derivative(grad)
        tensors, kept = _saved(ctx)
        wanted = ctx.needs_input_grad[3:]
        with _no_autocast(grad), torch.cuda.device_of(grad):
            return (
                None,
                None,
                None,
                *ctx.operator.backward(grad, tensors, kept, wanted, ctx.constant),
            )


def _check_first_derivative(grad: Tensor) -> None:
    # PyTorch's `once_differentiable` silently returns a constant if the incoming gradient is a
    # constant, for example that of a sum.
    unsupported = None
    if torch.is_grad_enabled():
        unsupported = 'second derivatives (create_graph=True)'
    elif torch._C._functorch.is_batchedtensor(grad) or _is_legacy_batched(grad):
        unsupported = 'batched gradients (is_grads_batched, vectorize=True)'
    if unsupported:
        raise RuntimeError(
            f'This path of FocalNet does not support {unsupported}. Compute inside '
            "`with mmfocalnet.ops.use_path('reference'):`."
        )


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """Ignore autocast, whose state may differ between forward and backward, and in compilers."""
    return torch.autocast(tensor.device.type, enabled=False)
