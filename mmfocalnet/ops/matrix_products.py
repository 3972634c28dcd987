"""Matrix products on the CPU through the faster library.

PyTorch computes matrix products with MKL, which is limited to AVX2 on non-Intel processors, and 1x1
convolutions with oneDNN, which uses AVX-512 where available and is then twice as fast. A matrix
product of M rows equals a 1x1 convolution of an image of M pixels.
"""

from __future__ import annotations

import functools
import platform

import torch
from torch import Tensor
from torch.nn import functional as F

# With fewer rows, oneDNN's reordering of the weights costs more than it saves.
_ROWS = 128
# Wider rows are multiplied as oneDNN's linear layer: with AVX2, its 1x1 convolution takes three
# times as long for most numbers of rows.
_WIDTH = 2048
# Elements that are transposed at a time, which should stay in the cache.
_CHUNK = 2**20


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows (M, K) by weights (N, K) and add a bias (N): (M, N)."""
    if not _by_onednn(rows, len(rows)):
        return F.linear(rows, weight, bias)
    return _multiply(rows, weight, bias)


def linear_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows (B, P, K) by weights (N, K) and add a bias (N): (B, N, P)."""
    weights = weight.expand(len(x), -1, -1)
    if not _by_onednn(x, x.shape[1]):
        if bias is None:
            return torch.bmm(weights, x.transpose(1, 2))
        return torch.baddbmm(bias[:, None], weights, x.transpose(1, 2))
    # Exchanging rows and weights yields the transposed product.
    products = [_multiply(weight.contiguous(), rows, None) for rows in x]
    out = products[0].unsqueeze(0) if len(x) == 1 else torch.stack(products)
    return out if bias is None else out.add_(bias[:, None])


def linear_of_planes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply planes (B, K, P) by weights (N, K) and add a bias (N): (B, P, N)."""
    batch, width, pixels = x.shape
    if not (_by_onednn(x, pixels) and _has_avx512()):
        # MKL multiplies transposed rows without a copy.
        return torch.baddbmm(bias, x.transpose(1, 2), weight.t().expand(batch, -1, -1))
    out = x.new_empty(batch, pixels, len(weight))
    chunk = max(_ROWS, _CHUNK // width)
    for planes, rows in zip(x, out, strict=True):
        parts = zip(planes.split(chunk, dim=1), rows.split(chunk), strict=True)
        for part, out_part in parts:
            out_part.copy_(linear(part.t(), weight, bias))
    return out


def weight_grad(rows: Tensor, grad: Tensor, total: Tensor | None = None) -> Tensor:
    """Gradient of the weights of `linear`: (N, K) from rows (M, K) and a gradient (M, N).

    If ``total`` is given, the gradient is added to it in place.
    """
    if not (_by_onednn(rows, len(rows)) and _has_avx512()):
        return grad.t() @ rows if total is None else total.addmm_(grad.t(), rows)
    like = rows.new_empty(grad.shape[1], rows.shape[1], 1, 1)
    part = kernel_grad(_as_image(rows), _as_image(grad), like).flatten(1)
    return part if total is None else total.add_(part)


def kernel_grad(x: Tensor, grad: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
    """Gradient of a convolution's kernel (N, K, k, k) from (B, K, H, W) and (B, N, H, W).

    The convolution has stride 1 and "same" padding; only shape and type of ``kernel`` are used.
    """
    padding = kernel.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        kernel,
        None,
        [1, 1],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        groups,
        [False, True, False],
    )[1]


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        bias = bias.contiguous()  # oneDNN ignores its stride
    if rows.shape[1] > _WIDTH and hasattr(torch.ops.mkldnn, '_linear_pointwise'):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, 'none', [], '')
    out = torch.mkldnn_convolution(
        _as_image(rows), weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1
    )
    return out.permute(0, 2, 3, 1).view(len(rows), len(weight))


def _as_image(rows: Tensor) -> Tensor:
    # [M, K] -> [1, K, M, 1], contiguous in channels-last memory.
    return rows.contiguous().view(1, len(rows), 1, -1).permute(0, 3, 1, 2)


def _by_onednn(x: Tensor, rows: int) -> bool:
    fits = rows >= _ROWS and x.dtype == torch.float32 and x.device.type == 'cpu'
    return fits and _has_onednn() and bool(torch.backends.mkldnn.enabled)


@functools.cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and platform.machine() in ('x86_64', 'AMD64')


@functools.cache
def _has_avx512() -> bool:
    # Without AVX-512, oneDNN's gradient of 1x1 kernels takes twice as long as MKL's product.
    return torch.backends.cpu.get_cpu_capability() == 'AVX512'
