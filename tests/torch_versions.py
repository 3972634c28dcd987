"""Marks of tests that need a newer PyTorch than the oldest supported one."""

import pytest
import torch

# Linear layers, autocast and the loss scale.
float16_on_cpu = pytest.mark.skipif(
    torch.__version__ < '2.3', reason='PyTorch 2.3 is the first with float16 on the CPU'
)
compiles_strict_zip = pytest.mark.skipif(
    torch.__version__ < '2.3', reason='PyTorch 2.1 cannot compile zip(strict=True)'
)
FLOAT16 = pytest.param(torch.float16, marks=float16_on_cpu)
