"""Pictures of training runs."""

from mmfocalnet.visualization.curves import draw_curves, read_scalars

__all__ = ['draw_curves', 'read_scalars']
