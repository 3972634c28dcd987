_base_ = [
    '../_base_/models/sparse_rcnn_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(
        arch='tiny_lrf',
        focal_windows=[11, 9, 9, 7],
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_tiny_lrf.pth',
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# Sparse R-CNN's own published rate and decay.
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-5, weight_decay=1e-4), clip_grad=dict(max_norm=1, norm_type=2)
)
