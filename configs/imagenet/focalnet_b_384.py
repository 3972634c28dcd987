_base_ = './focalnet_t_384.py'

model = dict(
    backbone=dict(arch='base_lrf', drop_path_rate=0.5),
    init_cfg=dict(
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_base_lrf.pth',
    ),
)
