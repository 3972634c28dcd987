_base_ = [
    '../_base_/models/mask2former_instance.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/mask2former_coco_50e.py',
    '../_base_/det_iter_runtime.py',
]

model = dict(
    backbone=dict(**_base_.tiny_lrf, focal_windows=[9, 9, 9, 9], drop_path_rate=0.3),
    panoptic_head=dict(in_channels=_base_.tiny_channels),
)
