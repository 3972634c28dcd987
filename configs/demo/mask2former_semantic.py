# `make demo MODEL=mask2former_semantic`: semantic segmentation of the generated shapes.
_base_ = [
    '../_base_/models/mask2former_semantic.py',
    '../_base_/models/mask2former_small_head.py',
    '../_base_/datasets/shapes_semantic.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_seg_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=_base_.small_backbone,
    decode_head=dict(
        **_base_.small_head,
        in_channels=_base_.small_backbone_channels,
        num_classes=7,
        loss_cls=dict(class_weight=[2.0] * 4 + [1.0] * 3 + [0.1]),
        train_cfg=dict(num_points=1024),
    ),
)

max_iters = 1600
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
