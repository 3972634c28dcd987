"""What the choice of a path depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """One call of an operator, as far as the choice of its path depends on it."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...] = ()  # Kernel sizes of the focal levels; none for an MLP.
    dtype: torch.dtype = torch.float32
    device: str = 'cpu'
    autocast: bool = False  # On the CPU; elsewhere no path minds.
    tensor: str = 'Tensor'  # The class of features and weights, of an unusual one if any.
    mixed: bool = False  # Weights of another type or on another device than the features.

    @classmethod
    def of(cls, x: Tensor, weights: Sequence[Tensor], kernels: Sequence[Tensor] = ()) -> Case:
        """Describe a call with features (B, H, W, C), its weights and kernels (C, 1, k, k)."""
        return cls(
            shape=tuple(x.shape),
            sizes=tuple(kernel.shape[-1] for kernel in kernels),
            dtype=x.dtype,
            device=x.device.type,
            autocast=x.device.type == 'cpu' and autocast_on_cpu(),
            tensor=_odd_type((x, *weights, *kernels)),
            mixed=any(w.dtype != x.dtype or w.device != x.device for w in (*weights, *kernels)),
        )


def _odd_type(tensors: Sequence[Tensor]) -> str:
    # Quantised and sharded weights are subclasses that know PyTorch's own operations only.
    odd = [type(tensor) for tensor in tensors if type(tensor) not in (Tensor, nn.Parameter)]
    return odd[0].__name__ if odd else 'Tensor'


def autocast_on_cpu() -> bool:
    """Tell whether autocast is on for the CPU."""
    try:
        return torch.is_autocast_enabled('cpu')
    except TypeError:  # PyTorch before 2.4 asks by another name.
        return torch.is_autocast_cpu_enabled()
