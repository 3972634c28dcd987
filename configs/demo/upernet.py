# `make demo MODEL=upernet`: semantic segmentation of the generated shapes with a small FocalNet.
_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/shapes_semantic.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_seg_runtime.py',
]

num_classes = 7
# Shapes cover fewer pixels than the textures and converge later.
loss = dict(class_weight=[4.0] * 4 + [1.0] * 3)
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=_base_.small_backbone,
    decode_head=dict(
        in_channels=_base_.small_backbone_channels,
        channels=64,
        num_classes=num_classes,
        loss_decode=loss,
    ),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=num_classes, loss_decode=loss),
)

max_iters = 1000
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
