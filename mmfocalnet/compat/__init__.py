"""Replacements for missing parts of dependencies, and log filters.

`ensure_mmcv_ops` makes mmcv without compiled ops importable; `ensure_panopticapi` makes mmdet load
and score panoptic data.
"""

from mmfocalnet.compat.mmcv_ops import ensure_mmcv_ops
from mmfocalnet.compat.panopticapi import ensure_panopticapi

__all__ = ['ensure_mmcv_ops', 'ensure_panopticapi']
