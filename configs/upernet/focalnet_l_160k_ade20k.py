# Beyond the paper: the ImageNet-22K backbone with the recipe of the others.
_base_ = './focalnet_t_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='large_fl3',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_large_lrf_384.pth',
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
