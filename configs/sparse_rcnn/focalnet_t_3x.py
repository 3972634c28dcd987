_base_ = [
    '../_base_/models/sparse_rcnn_fpn.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(**_base_.tiny_lrf, focal_windows=[11, 9, 9, 7], drop_path_rate=0.3),
    neck=dict(in_channels=_base_.tiny_channels),
)
# Learning rate and weight decay as published with Sparse R-CNN.
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-5, weight_decay=1e-4), clip_grad=dict(max_norm=1, norm_type=2)
)
