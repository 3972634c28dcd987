"""Shared code of the ops: their provider, its log line, and gradients in single precision."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EXT = 'mmcv._ext'

_MESSAGES = {
    'mmcv': 'mmcv ops: compiled.',
    'torchvision': 'mmcv ops: mmcv is not compiled. nms and roi_align run on torchvision, other '
    'ops in plain PyTorch.',
    'pytorch': 'mmcv ops: mmcv is not compiled. Its ops run in plain PyTorch.',
}


def ops_provider() -> str:
    """Return what runs nms and roi_align: 'mmcv' (compiled), 'torchvision' or 'pytorch'.

    Raises:
        ImportError: If mmcv has no compiled ops and `ensure_mmcv_ops` was not called.
    """
    return vars(importlib.import_module(EXT)).get('OPS_PROVIDER', 'mmcv')


@functools.cache
def log_ops_provider() -> None:
    """Log the provider once per process, through MMEngine's current logger.

    Our ops call this when they run. By then the Runner's logger exists, so that the line reaches
    the console and the log file. Compiled ops cannot call it: a tool that wants the line for them
    calls it itself. Ranks other than 0 and DataLoader workers log nothing.
    """
    # Imported late: mmengine.logging imports most of MMEngine.
    from mmengine.dist import is_main_process
    from mmengine.logging import print_log

    if is_main_process() and torch.utils.data.get_worker_info() is None:
        print_log(_MESSAGES[ops_provider()], logger='current', level=logging.INFO)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return float32 for half precision, else the dtype of the tensor."""
    return torch.promote_types(tensor.dtype, torch.float32)


def add_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    grad_output: Tensor,
) -> None:
    """Add to `grads` the gradients of `function(*inputs)`, by running it with autograd.

    Half precision computes in float32, also under autocast. An entry of None in `grads` is for an
    input whose gradient is not needed.
    """
    dtype = compute_dtype(grad_output)
    leaves = [
        tensor.detach().to(dtype).requires_grad_(grad is not None)
        for tensor, grad in zip(inputs, grads, strict=True)
    ]
    with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
        output = function(*leaves)
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    values = iter(torch.autograd.grad(output, needed, grad_output.to(dtype)))
    for grad in grads:
        if grad is not None:
            grad.add_(next(values))
