# Not in the paper: the ImageNet-22K backbone with the recipe of the other sizes.
_base_ = ['./focalnet_t_160k_ade20k.py', '../_base_/backbones/large.py']

model = dict(
    backbone=_base_.large_fl3,
    decode_head=dict(in_channels=_base_.large_channels),
    auxiliary_head=dict(in_channels=_base_.large_channels[2]),
)
