_base_ = './focalnet_t_384.py'

model = dict(
    backbone=dict(arch='small_lrf', drop_path_rate=0.3),
    init_cfg=dict(
        checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_small_lrf.pth',
    ),
)
