"""Mixed precision on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from mmfocalnet.registry import register


@register(OPTIM_WRAPPERS)
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on the CPU: bfloat16 autocast, which needs no loss scale.

    MMEngine's ``AmpOptimWrapper`` requires a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass in bfloat16 where autocast allows it."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
