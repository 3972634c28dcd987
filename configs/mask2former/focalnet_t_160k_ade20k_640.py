_base_ = [
    '../_base_/models/mask2former_semantic.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/schedules/mask2former_ade20k_160k.py',
    '../_base_/seg_runtime.py',
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
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
