"""Replacements for missing parts of dependencies, and log filters.

`ensure_mmcv_ops` makes mmcv without compiled ops importable; `ensure_panopticapi` makes mmdet load
and score panoptic data. Their modules import PyTorch and NumPy, so they are imported when called.
"""

__all__ = ['ensure_mmcv_ops', 'ensure_panopticapi']


def ensure_mmcv_ops() -> str:
    """See `mmfocalnet.compat.mmcv_ops.ensure_mmcv_ops`."""
    from mmfocalnet.compat import mmcv_ops

    return mmcv_ops.ensure_mmcv_ops()


def ensure_panopticapi() -> str:
    """See `mmfocalnet.compat.panopticapi.ensure_panopticapi`."""
    from mmfocalnet.compat import panopticapi

    return panopticapi.ensure_panopticapi()
