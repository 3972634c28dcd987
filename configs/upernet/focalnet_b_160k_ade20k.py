_base_ = ['./focalnet_t_160k_ade20k.py', '../_base_/backbones/base.py']

model = dict(
    backbone=_base_.base_lrf,
    decode_head=dict(in_channels=_base_.base_channels),
    auxiliary_head=dict(in_channels=_base_.base_channels[2]),
)
