_base_ = ['./focalnet_t_160k_ade20k_640.py', '../_base_/backbones/large.py']

model = dict(
    backbone=dict(**_base_.large_fl3, focal_windows=5),  # as pretrained on ImageNet-22K
    decode_head=dict(in_channels=_base_.large_channels),
)
