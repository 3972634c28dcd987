# FocalNet-T, pretrained on ImageNet-1K, that detects blood cells: for a GPU.
_base_ = [
    '../_base_/models/atss_fpn.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]

image_scale = (640, 480)
train_pipeline = _base_.train_pipeline
train_pipeline[3].scale = image_scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_scale
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

model = dict(
    backbone=_base_.tiny_lrf,
    neck=dict(in_channels=_base_.tiny_channels[1:]),
    bbox_head=dict(num_classes=3),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
