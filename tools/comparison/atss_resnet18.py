# ResNet-18 with as many parameters as FocalNet: 23 instead of 64 channels.
_base_ = '../../configs/bccd/atss_focalnet.py'

width = 23
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        stem_channels=width,
        base_channels=width,
        out_indices=(1, 2, 3),
        norm_eval=False,
    ),
    neck=dict(in_channels=[2 * width, 4 * width, 8 * width]),
)
