# Beyond the paper: the ImageNet-22K backbone with the recipe of the base one. Without 80 GB of
# GPU memory add use_checkpoint=True to the backbone.
_base_ = './focalnet_b_3x.py'

model = dict(
    backbone=dict(
        arch='large_fl3',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_large_lrf_384.pth',
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
