_base_ = './focalnet_t_160k_ade20k_640.py'

model = dict(
    backbone=dict(
        arch='large_fl3',
        focal_windows=5,  # as pretrained on ImageNet-22K
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_large_lrf_384.pth',
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)
