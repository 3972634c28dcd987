_base_ = [
    '../_base_/models/mask2former_panoptic.py',
    '../_base_/datasets/coco_panoptic.py',
    '../_base_/schedules/mask2former_coco_100e.py',
    '../_base_/det_iter_runtime.py',
]

model = dict(
    backbone=dict(
        arch='large_fl3',  # the windows of its ImageNet-22K pretraining, 5
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/microsoft/FocalNet/releases/download/v1.0.0/focalnet_large_lrf_384.pth',
        ),
    ),
    panoptic_head=dict(in_channels=[192, 384, 768, 1536], num_queries=200),
)
