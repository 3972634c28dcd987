# A small FocalNet from scratch that detects blood cells.
_base_ = [
    '../_base_/models/atss_small.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]

model = dict(
    # Drop path reduces overfitting (docs/evidence.md).
    backbone=dict(_base_.small_backbone, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.small_backbone_channels[1:]),
    bbox_head=dict(num_classes=3),
)
train_cfg = dict(max_iters=600, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 600
# Focal loss gives low scores.
default_hooks = dict(visualization=dict(score_thr=0.3))
