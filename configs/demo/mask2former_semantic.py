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
        # Lower weights of the mask losses and the auxiliary head make the classes converge first.
        # Without the auxiliary head, the backbone would need thousands of iterations.
        loss_cls=dict(class_weight=[2.0] * 4 + [1.0] * 3 + [0.1]),
        loss_mask=dict(loss_weight=1.0),
        loss_dice=dict(loss_weight=1.0),
        train_cfg=dict(num_points=1024),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        in_channels=128,
        channels=32,
        num_convs=1,
        concat_input=False,
        num_classes=7,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss', loss_weight=2.0, class_weight=[4.0] * 4 + [1.0] * 3
        ),
    ),
)

max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
