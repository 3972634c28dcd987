"""Depth-wise convolutions and the gradients of their kernels by Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Pixels of the planes that are transformed at a time: on a CPU, they should stay in the cache.
_CPU_CHUNK, _GPU_CHUNK = 2**20, 2**26


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve planes (B, C, H, W) with depth-wise kernels (C, 1, k, k), with zeros around them."""
    height, width = x.shape[2:]
    reach = kernel.shape[-1] // 2
    shape = _padded_shape(x, reach)
    planes = []
    for part, kernels in _channel_chunks(x, kernel):
        spectrum = _spectrum(part, shape) * _spectrum(kernels[:, 0], shape).conj()
        out = torch.fft.irfft2(spectrum, s=shape).roll((reach, reach), (2, 3))
        planes.append(out[:, :, :height, :width].to(x.dtype))
    return torch.cat(planes, dim=1)


def kernel_grad(x: Tensor, grad: Tensor, size: int) -> Tensor:
    """Compute the gradient (C, k, k) of a depth-wise kernel from planes (B, C, H, W)."""
    reach = size // 2
    shape = _padded_shape(x, reach)
    lags = torch.arange(-reach, reach + 1, device=x.device)
    kernels = []
    for part, grads in _channel_chunks(x, grad, dim=1):
        spectrum = _spectrum(part, shape)
        spectrum *= _spectrum(grads, shape).conj()
        planes = torch.fft.irfft2(spectrum.sum(0), s=shape)
        kernels.append(planes[:, lags % shape[0]][:, :, lags % shape[1]])
    return torch.cat(kernels)


def _channel_chunks(x: Tensor, other: Tensor, dim: int = 0) -> zip:
    """Split planes (B, C, H, W), and another tensor with channels in ``dim``, by channels."""
    chunk = _GPU_CHUNK if x.is_cuda else _CPU_CHUNK
    size = max(1, chunk // x[:, 0].numel())
    return zip(x.split(size, 1), other.split(size, dim), strict=True)


def _spectrum(planes: Tensor, shape: Sequence[int]) -> Tensor:
    # There is no Fourier transform of bfloat16.
    dtype = torch.promote_types(planes.dtype, torch.float32)
    return torch.fft.rfft2(planes.to(dtype).contiguous(), s=shape)


def _padded_shape(x: Tensor, reach: int) -> list[int]:
    """Height and width with zeros for all offsets, as numbers that transform fast."""
    return [_fast_length(length + reach) for length in x.shape[2:]]


def _fast_length(length: int) -> int:
    """Smallest number of at least ``length`` whose prime factors are 2, 3 and 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
