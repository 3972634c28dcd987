"""Shared code of the ops: their provider, its log line, and the dtype of computation."""

from __future__ import annotations

import functools
import importlib
import logging

import torch
from torch import Tensor

EXT = 'mmcv._ext'

_MESSAGES = {
    'mmcv': 'mmcv ops: compiled.',
    'torchvision': 'mmcv ops: mmcv is not compiled. nms and roi_align run on torchvision, focal '
    'loss and deformable attention in plain PyTorch.',
    'pytorch': 'mmcv ops: mmcv is not compiled. nms, roi_align, focal loss and deformable '
    'attention run in plain PyTorch.',
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
