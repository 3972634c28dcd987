"""Properties of a call that determine its path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """The properties of one call of an operator that decide which paths can run it."""

    kernel_sizes: tuple[int, ...] = ()  # One per focal level; empty for linear layers and MLPs.
    dtype: torch.dtype = torch.float32
    device: str = 'cpu'
    autocast: bool = False  # CPU autocast; CUDA autocast affects no path.
    tensor_type: str = 'Tensor'  # The first tensor subclass among features and weights, if any.
    empty: bool = False  # The features have no elements.
    mixed: bool = False  # Some weight differs from the features in dtype or device.

    @classmethod
    def of(cls, x: Tensor, weights: Sequence[Tensor], kernels: Sequence[Tensor] = ()) -> Call:
        """Describe a call with features (B, H, W, C), its weights and kernels (C, 1, k, k)."""
        tensors = (*weights, *kernels)
        return cls(
            kernel_sizes=tuple(kernel.shape[-1] for kernel in kernels),
            dtype=x.dtype,
            device=x.device.type,
            autocast=x.device.type == 'cpu' and autocast_dtype('cpu') is not None,
            tensor_type=_tensor_type((x, *tensors)),
            # With dynamic shapes, PyTorch 2.14 compiles `0 in x.shape` to a symbol, not a bool.
            empty=any(size == 0 for size in x.shape),
            mixed=any(t.dtype != x.dtype or t.device != x.device for t in tensors),
        )

    def unusual_input(self) -> str | None:
        """Why only the reference can run this call; None if other paths may run it."""
        if self.tensor_type != 'Tensor':
            # Quantised and sharded weights are subclasses that support PyTorch's own ops only.
            return f'an input is a {self.tensor_type}, not a torch.Tensor'
        return 'the features are empty' if self.empty else None

    def unsupported_by_pytorch(self) -> str | None:
        """Why the pytorch path cannot run this call; None if it can."""
        if self.device != 'cpu':
            return f'the features are on {self.device}, and this path is faster on the CPU only'
        return self.unusual_input()


def _tensor_type(tensors: Sequence[Tensor]) -> str:
    subclasses = [type(tensor) for tensor in tensors if type(tensor) not in (Tensor, nn.Parameter)]
    return subclasses[0].__name__ if subclasses else 'Tensor'


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type of autocast on ``'cpu'`` or ``'cuda'``; None if it is disabled."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cpu':  # PyTorch before 2.4
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
