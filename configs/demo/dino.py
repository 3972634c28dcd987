# `make demo MODEL=dino`: detection of the generated shapes with 30 queries and denoising.
_base_ = [
    '../_base_/models/dino.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]
custom_imports = dict(imports=['mmfocalnet', 'mmfocalnet.models.dino'])

channels = 64
num_scales = 3
attention = dict(embed_dims=channels, num_heads=4)
deformable_attention = dict(**attention, num_levels=num_scales)
ffn = dict(embed_dims=channels, feedforward_channels=256)

model = dict(
    num_queries=30,
    num_feature_levels=num_scales,
    backbone=_base_.small_backbone,
    neck=dict(
        in_channels=_base_.small_backbone_channels[1:],
        out_channels=channels,
        norm_cfg=dict(num_groups=8),
        num_outs=num_scales,
    ),
    encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable_attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=deformable_attention, ffn_cfg=ffn),
    ),
    positional_encoding=dict(num_feats=channels // 2),
    bbox_head=dict(num_classes=4, embed_dims=channels),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=30),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

# Small batches: the number of updates limits DINO in a short run.
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
auto_scale_lr = dict(base_batch_size=2)
max_iters = 3600
train_cfg = dict(max_iters=max_iters, val_interval=600)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Focal loss gives low scores.
default_hooks = dict(visualization=dict(score_thr=0.3))
