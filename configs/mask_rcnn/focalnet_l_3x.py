# Not in the paper: the ImageNet-22K backbone with the recipe of FocalNet-B. On GPUs with less than
# 80 GB of memory, add use_checkpoint=True to the backbone.
_base_ = ['./focalnet_b_3x.py', '../_base_/backbones/large.py']

model = dict(
    backbone=_base_.large_fl3,
    neck=dict(in_channels=_base_.large_channels),
)
