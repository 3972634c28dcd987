"""Stand-ins for what a dependency lacks.

`ensure_mmcv_ops` lets an mmcv without ops import, `ensure_panopticapi` lets mmdet load and score
panoptic data.
"""

from mmfocalnet.compat.mmcv_ops import ensure_mmcv_ops
from mmfocalnet.compat.panopticapi import ensure_panopticapi

__all__ = ['ensure_mmcv_ops', 'ensure_panopticapi']
