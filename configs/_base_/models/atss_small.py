# ATSS with 64 channels on strides 8, 16 and 32, for small images and small backbones.
_base_ = './atss_fpn.py'

channels = 64
model = dict(
    neck=dict(out_channels=channels, num_outs=3),
    bbox_head=dict(
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=4, strides=[8, 16, 32]),
    ),
)
