"""Pictures of training runs."""

from mmfocalnet.visualization.curves import draw_curves, metric_curve, read_scalars
from mmfocalnet.visualization.sheet import draw_sheet

__all__ = ['draw_curves', 'draw_sheet', 'metric_curve', 'read_scalars']
