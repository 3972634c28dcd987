"""Stand-ins for what a dependency lacks; `ensure_mmcv_ops` lets an mmcv without ops import."""

from .mmcv_ops import ensure_mmcv_ops

__all__ = ['ensure_mmcv_ops']
