_base_ = ['./focalnet_t_1x.py', '../_base_/backbones/base.py']

model = dict(
    backbone=dict(**_base_.base_lrf, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.base_channels),
)
