_base_ = './focalnet_t_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='tiny_srf',
        init_cfg=dict(
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_tiny_srf.pth',
        ),
    ),
)
