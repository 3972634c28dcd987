_base_ = './focalnet_t_3x.py'

model = dict(
    backbone=dict(
        arch='tiny_srf',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_tiny_srf.pth',
        ),
    ),
)
