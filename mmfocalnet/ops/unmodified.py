"""Whether an operator may replace the layers that hold its weights."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as base

_GLOBAL_HOOKS = (
    base._global_forward_hooks,
    base._global_forward_pre_hooks,
    base._global_backward_hooks,
    base._global_backward_pre_hooks,
)


def is_unmodified(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``layer`` does exactly what a layer of class ``kind`` does.

    False if the layer has a hook (FLOPs counting, feature drawing, gathering of shards) or was
    replaced (adapters, quantisation, parametrisation). Such a layer must be called.
    """
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    replaced = type(layer) is not kind or 'forward' in layer.__dict__
    return not replaced and not any(hooks) and not any(_GLOBAL_HOOKS)


def is_exact_gelu(layer: nn.Module) -> bool:
    """Whether a layer is an unmodified GELU without the tanh approximation."""
    return is_unmodified(layer, nn.GELU) and layer.approximate == 'none'
