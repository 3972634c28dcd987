_base_ = [
    '../_base_/models/atss_fpn.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_3x.py',
    '../_base_/det_runtime.py',
]

model = dict(
    backbone=dict(**_base_.tiny_lrf, focal_windows=[11, 9, 9, 7], drop_path_rate=0.3),
    neck=dict(in_channels=_base_.tiny_channels[1:]),
)
