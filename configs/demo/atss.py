# `make demo MODEL=atss`: one-stage detection of the generated shapes.
_base_ = [
    '../_base_/models/atss_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]

channels = 64
model = dict(
    backbone=_base_.small_backbone,
    neck=dict(in_channels=_base_.small_backbone_channels[1:], out_channels=channels, num_outs=3),
    bbox_head=dict(
        num_classes=4,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=4, strides=[8, 16, 32]),
    ),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Focal loss gives low scores.
default_hooks = dict(visualization=dict(score_thr=0.3))
