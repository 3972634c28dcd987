"""Marks of tests that some supported stacks cannot pass (docs/install.md, Tested stacks)."""

import pytest
import torch

from mmfocalnet.compat import ensure_mmcv_ops

# Linear layers, autocast and the loss scale.
float16_on_cpu = pytest.mark.skipif(
    torch.__version__ < '2.3', reason='PyTorch 2.3 is the first with float16 on the CPU'
)
compiles_strict_zip = pytest.mark.skipif(
    torch.__version__ < '2.3', reason='PyTorch 2.1 cannot compile zip(strict=True)'
)
ops_in_pytorch = pytest.mark.skipif(
    ensure_mmcv_ops() == 'mmcv',
    reason='On the CPU, compiled ops of mmcv accept neither bfloat16 nor boxes of negative size',
)
FLOAT16 = pytest.param(torch.float16, marks=float16_on_cpu)
