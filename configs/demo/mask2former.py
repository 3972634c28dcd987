# `make demo MODEL=mask2former`: panoptic segmentation of the generated shapes.
_base_ = [
    '../_base_/models/mask2former_panoptic.py',
    '../_base_/models/mask2former_small_head.py',
    '../_base_/datasets/shapes_panoptic.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]

classes = dict(num_things_classes=4, num_stuff_classes=3)
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=_base_.small_backbone,
    panoptic_head=dict(
        **_base_.small_head,
        **classes,
        in_channels=_base_.small_backbone_channels,
        loss_cls=dict(class_weight=[2.0] * 4 + [1.0] * 3 + [0.1]),
    ),
    panoptic_fusion_head=classes,
    train_cfg=dict(num_points=1024),
    # A lower threshold than usual, because a short training gives low scores.
    test_cfg=dict(max_per_image=20, object_mask_thr=0.4),
)

max_iters = 1400
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
