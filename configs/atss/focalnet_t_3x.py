_base_ = [
    '../_base_/models/atss_fpn.py',
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
    neck=dict(in_channels=[192, 384, 768]),
)
