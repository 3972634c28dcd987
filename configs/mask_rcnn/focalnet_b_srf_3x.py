_base_ = './focalnet_b_3x.py'

model = dict(
    backbone=dict(
        arch='base_srf',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_base_srf.pth',
        ),
    ),
)
