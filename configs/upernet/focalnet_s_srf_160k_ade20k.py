_base_ = './focalnet_s_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='small_srf',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_small_srf.pth',
        ),
    ),
)
