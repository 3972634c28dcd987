_base_ = './focalnet_t_1x.py'

# Deeper and thinner (Table 3). No ImageNet checkpoint of it was released. To use your own:
# --cfg-options model.backbone.init_cfg._delete_=True model.backbone.init_cfg.type=Pretrained
# model.backbone.init_cfg.checkpoint=PATH.
model = dict(
    backbone=dict(arch='small_deep_lrf', drop_path_rate=0.2, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
