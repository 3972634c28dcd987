# DINO with a fifth scale, of stride 4.
_base_ = './dino.py'

num_scales = 5
model = dict(
    num_feature_levels=num_scales,
    backbone=dict(out_indices=[0, 1, 2, 3]),
    neck=dict(num_outs=num_scales),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=num_scales))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=num_scales))),
)
