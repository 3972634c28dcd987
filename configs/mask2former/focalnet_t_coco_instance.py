_base_ = [
    '../_base_/models/mask2former_instance.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/mask2former_coco_50e.py',
    '../_base_/det_iter_runtime.py',
]

model = dict(
    backbone=dict(
        arch='tiny_lrf',
        focal_windows=[9, 9, 9, 9],
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_tiny_lrf.pth',
        ),
    ),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
