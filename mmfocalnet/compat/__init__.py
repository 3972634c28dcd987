"""Replacements for what a dependency lacks, one module per op or package.

`ensure_mmcv_ops` makes an mmcv without compiled ops import; `ensure_panopticapi` makes mmdet load
and score panoptic data.
"""

from mmfocalnet.compat.mmcv_ops import ensure_mmcv_ops
from mmfocalnet.compat.panopticapi import ensure_panopticapi

__all__ = ['ensure_mmcv_ops', 'ensure_panopticapi']
