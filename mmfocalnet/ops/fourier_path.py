"""The fourier path: large depth-wise convolutions by Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops import fourier, pytorch_path, reference


def modulate(x: Tensor, weights: reference.ModulationWeights) -> Tensor:
    """Compute `reference.modulate`."""
    return reference.modulate(x, weights, _aggregate_context)


def _aggregate_context(context: Tensor, gates: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    return _aggregate(context, gates, *kernels, constant=0.0)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    size = kernel.shape[-1]
    if size < pytorch_path.FFT_SIZE:
        return F.conv2d(x, kernel, padding=size // 2, groups=len(kernel))
    return fourier.convolve(x, kernel)


_aggregate = pytorch_path.fused_operator('aggregate_context_fourier', _convolve)
