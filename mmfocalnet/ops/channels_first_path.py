"""The channels_first path: focal modulation in the layout of the published code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.ops.reference import ModulationWeights


def modulate(x: Tensor, weights: ModulationWeights) -> Tensor:
    """Compute `reference.modulate` (Algorithm 1) on channels-first memory."""
    dim, levels = len(weights.h_weight), len(weights.kernels)
    projected = F.linear(x, weights.f_weight, weights.f_bias)
    projected = projected.permute(0, 3, 1, 2).contiguous()  # [B, H, W, C] -> [B, C, H, W]
    query, context, gates = projected.split((dim, dim, levels + 1), dim=1)
    *level_gates, global_gate = gates.split(1, dim=1)
    total = 0.0
    for kernel, gate in zip(weights.kernels, level_gates, strict=True):
        context = F.gelu(F.conv2d(context, kernel, padding=kernel.shape[-1] // 2, groups=dim))
        total = total + context * gate
    total = total + F.gelu(context.mean(dim=(2, 3), keepdim=True)) * global_gate
    if weights.normalize_modulator:
        total = total / (levels + 1)
    out = query * _project(total, weights.h_weight.flatten(1), weights.h_bias)
    return out.permute(0, 2, 3, 1).contiguous()


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Not as a 1x1 convolution, which PyTorch rounds to TF32 on GPUs by default.
    weight, planes = weight.expand(len(x), -1, -1), x.flatten(2)
    if bias is None:
        return torch.bmm(weight, planes).view_as(x)
    return torch.baddbmm(bias[:, None], weight, planes).view_as(x)
