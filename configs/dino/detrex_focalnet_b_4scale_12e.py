# Focal windows of 3, as in pretraining and in detrex. No detector of this size is released.
_base_ = ['./detrex_focalnet_l_fl3_4scale_12e.py', '../_base_/backbones/base.py']

model = dict(
    backbone=dict(**_base_.base_lrf, drop_path_rate=0.1),
    neck=dict(in_channels=_base_.base_channels[1:]),
)
