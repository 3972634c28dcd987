# `make demo MODEL=sparse_rcnn`: detection of the generated shapes with 30 learned proposals.
_base_ = [
    '../_base_/models/sparse_rcnn_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]

channels = 64
num_stages = 3
num_proposals = 30
stage = _base_.model.roi_head.bbox_head[0]
stage.update(num_classes=4, in_channels=channels, feedforward_channels=256, num_heads=4)
stage.dynamic_conv_cfg.update(in_channels=channels, feat_channels=16, out_channels=channels)

model = dict(
    backbone=_base_.small_backbone,
    neck=dict(in_channels=_base_.small_backbone_channels, out_channels=channels),
    rpn_head=dict(num_proposals=num_proposals, proposal_feature_channel=channels),
    roi_head=dict(
        num_stages=num_stages,
        stage_loss_weights=[1] * num_stages,
        proposal_feature_channel=channels,
        bbox_roi_extractor=dict(out_channels=channels, finest_scale=16),
        bbox_head=[stage] * num_stages,
    ),
    train_cfg=dict(rcnn=_base_.model.train_cfg.rcnn[:num_stages]),
    test_cfg=dict(rcnn=dict(max_per_img=num_proposals)),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator

max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
# Focal loss gives low scores.
default_hooks = dict(visualization=dict(score_thr=0.3))
