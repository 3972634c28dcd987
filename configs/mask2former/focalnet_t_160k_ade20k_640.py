_base_ = [
    '../_base_/models/mask2former_semantic.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/schedules/mask2former_ade20k_160k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(**_base_.tiny_lrf, focal_windows=[9, 9, 9, 9], drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.tiny_channels),
)
