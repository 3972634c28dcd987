_base_ = './focalnet_b_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='base_srf',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_base_srf.pth',
        ),
    ),
)
