# The recipe of FocalNet-DINO with four focal levels, and a fifth scale of stride 4.
_base_ = './focalnet_l_fl3_4scale_12e.py'

num_scales = 5
model = dict(
    num_feature_levels=num_scales,
    backbone=dict(**_base_.large_fl4, out_indices=[0, 1, 2, 3]),
    neck=dict(in_channels=_base_.large_channels, num_outs=num_scales),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=num_scales))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=num_scales))),
)
# Start from the released detector, trained on Objects365 and then on COCO:
# load_from = 'https://huggingface.co/microsoft/focalnet-large-fl4-dino-o365-cocoft/resolve/main/focalnet_large_fl4_o365_finetuned_on_coco.pth'
