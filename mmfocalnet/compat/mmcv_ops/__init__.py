"""Replacements for the ops of `mmcv._ext`, which `pip install mmcv` does not compile.

Without `mmcv._ext`, `import mmdet.models` fails. The ops that models of mmdet and mmseg call are
implemented here, for any device. Any other op raises an error with its name.

The provider is, in this order, a compiled mmcv, whose ops are left untouched, torchvision for `nms`
and `roi_align`, or plain PyTorch. In all cases, mmcv's Python code for deformable attention is
replaced by code that needs less memory.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from mmfocalnet.compat.mmcv_ops import (
    carafe,
    deform_conv,
    deform_roi_pool,
    focal_loss,
    masked_conv,
    multi_scale_deform_attn,
    nms,
    nms_match,
    psa_mask,
    roi_align,
    roi_pool,
    soft_nms,
)
from mmfocalnet.compat.mmcv_ops.common import EXT, log_ops_provider, ops_provider
from mmfocalnet.compat.module_finder import ModuleFinder, ModulePatch

__all__ = ['OPS', 'ensure_mmcv_ops', 'log_ops_provider', 'ops_provider']

_PYTORCH_OPS = {
    op.__name__: op
    for op in (
        carafe.carafe_forward,
        carafe.carafe_backward,
        carafe.carafe_naive_forward,
        carafe.carafe_naive_backward,
        deform_conv.deform_conv_forward,
        deform_conv.deform_conv_backward_input,
        deform_conv.deform_conv_backward_parameters,
        deform_conv.modulated_deform_conv_forward,
        deform_conv.modulated_deform_conv_backward,
        deform_roi_pool.deform_roi_pool_forward,
        deform_roi_pool.deform_roi_pool_backward,
        focal_loss.sigmoid_focal_loss_forward,
        focal_loss.sigmoid_focal_loss_backward,
        focal_loss.softmax_focal_loss_forward,
        focal_loss.softmax_focal_loss_backward,
        masked_conv.masked_im2col_forward,
        masked_conv.masked_col2im_forward,
        multi_scale_deform_attn.ms_deform_attn_forward,
        multi_scale_deform_attn.ms_deform_attn_backward,
        nms.nms,
        nms_match.nms_match,
        psa_mask.psamask_forward,
        psa_mask.psamask_backward,
        roi_align.roi_align_forward,
        roi_align.roi_align_backward,
        roi_pool.roi_pool_forward,
        roi_pool.roi_pool_backward,
        soft_nms.softnms,
    )
}
# Ops by provider and by their name in `mmcv._ext`.
OPS: dict[str, dict[str, Callable]] = dict(
    pytorch=_PYTORCH_OPS,
    torchvision=_PYTORCH_OPS
    | dict(
        nms=nms.torchvision_nms,
        roi_align_forward=roi_align.torchvision_roi_align_forward,
        roi_align_backward=roi_align.torchvision_roi_align_backward,
    ),
)


def ensure_mmcv_ops() -> str:
    """Make `import mmcv.ops` work, with the ops of this package where mmcv has none compiled.

    mmcv's Python function for multi-scale deformable attention is replaced in any case. Can be
    called repeatedly. Logs nothing, so that importing the package keeps standard output clean; see
    `log_ops_provider`.

    Returns:
        What runs nms and roi_align: 'mmcv', 'torchvision' or 'pytorch'.
    """
    importlib.import_module('mmcv')
    if not _ext_imports():
        # An entry of None, or of a partly imported module, would hide ours.
        sys.modules.pop(EXT, None)
        provider = 'torchvision' if _torchvision_imports() else 'pytorch'
        # First, because a compiled file that does not load still has a finder.
        sys.meta_path.insert(0, ExtFinder(provider))
        if provider == 'pytorch':
            _ROI_ALIGN_PATCH.install()
        importlib.import_module(EXT)
    _ATTENTION_PATCH.install()
    return ops_provider()


def _ext_imports() -> bool:
    """Return whether `mmcv._ext` imports; warn if it is installed but does not load."""
    try:
        importlib.import_module(EXT)
    except (ImportError, OSError) as error:
        if getattr(error, 'name', None) != EXT or not isinstance(error, ModuleNotFoundError):
            warnings.warn(
                f"mmcv's compiled ops are installed but do not load ({error}). mmfocalnet replaces "
                'those that its models call.',
                stacklevel=3,
            )
        return False
    return True


def _torchvision_imports() -> bool:
    # A torchvision built for another torch raises RuntimeError at import, or imports without its
    # compiled operators.
    try:
        importlib.import_module('torchvision')
        return all(
            hasattr(torch.ops.torchvision, op) for op in ('nms', 'roi_align', '_roi_align_backward')
        )
    except (ImportError, RuntimeError, OSError, AttributeError):
        return False


class ExtFinder(ModuleFinder):
    """Provides `mmcv._ext`."""

    names = (EXT,)

    def __init__(self, provider: str) -> None:
        self.provider = provider

    def exec_module(self, module: ModuleType) -> None:
        """Put the ops into the module."""
        not_compiled = f'not compiled (nms and roi_align: {self.provider})'
        vars(module).update(
            OPS[self.provider],
            OPS_PROVIDER=self.provider,
            get_compiler_version=lambda: not_compiled,
            get_compiling_cuda_version=lambda: not_compiled,
            __getattr__=_missing_op,
        )


def _ignore_use_torchvision(module: Any) -> None:
    """Let `mmcv.ops.RoIAlign(use_torchvision=True)`, as in CrowdDet, run without torchvision."""
    # Assignments in __init__ have no effect: `forward` calls the op.
    module.RoIAlign.use_torchvision = property(lambda self: False, lambda self, value: None)


def _limit_memory_of_attention(module: Any) -> None:
    ours = multi_scale_deform_attn.multi_scale_deformable_attn
    if module.multi_scale_deformable_attn_pytorch is not ours:
        module.mmcv_attention = module.multi_scale_deformable_attn_pytorch  # for comparisons
        module.multi_scale_deformable_attn_pytorch = ours


_ROI_ALIGN_PATCH = ModulePatch('mmcv.ops.roi_align', _ignore_use_torchvision)
_ATTENTION_PATCH = ModulePatch('mmcv.ops.multi_scale_deform_attn', _limit_memory_of_attention)


def _missing_op(name: str) -> Callable:
    """The module's `__getattr__`: mmcv checks that all its ops exist, but calls few of them."""
    if name.startswith('__'):
        raise AttributeError(f"module '{EXT}' has no attribute '{name}'")
    return functools.partial(_raise_missing, name)


def _raise_missing(name: str, *args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(
        f"mmcv's op '{name}' is not available without compiled ops: install an mmcv build with "
        'compiled ops, see https://mmcv.readthedocs.io/en/latest/get_started/installation.html'
    )
