"""Whether an operator may stand in for the layers that hold its weights."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as base

_hooks_of_all_layers = (
    base._global_forward_hooks,
    base._global_forward_pre_hooks,
    base._global_backward_hooks,
    base._global_backward_pre_hooks,
)


def runs_as_it_stands(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether calling ``layer`` does nothing but what a layer of this class does.

    False where a hook watches it (counting FLOPs, drawing features, gathering shards), or
    where it was replaced (adapters, quantisation, parametrisation): then it must be called.
    """
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    replaced = type(layer) is not kind or 'forward' in vars(layer)
    return not replaced and not any(hooks) and not any(_hooks_of_all_layers)


def is_exact_gelu(layer: nn.Module) -> bool:
    """Tell whether a layer does what the operators do for GELU: not the tanh approximation."""
    return runs_as_it_stands(layer, nn.GELU) and layer.approximate == 'none'
