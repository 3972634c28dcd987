_base_ = [
    '../_base_/models/mask2former_panoptic.py',
    '../_base_/backbones/large.py',
    '../_base_/datasets/coco_panoptic.py',
    '../_base_/schedules/mask2former_coco_100e.py',
    '../_base_/det_iter_runtime.py',
]

model = dict(
    backbone=dict(**_base_.large_fl3, drop_path_rate=0.3),
    panoptic_head=dict(in_channels=_base_.large_channels, num_queries=200),
)
