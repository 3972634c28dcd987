_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_160k.py',
    '../_base_/seg_runtime.py',
]

model = dict(
    backbone=dict(**_base_.tiny_lrf, focal_windows=[9, 9, 9, 9], drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.tiny_channels),
    auxiliary_head=dict(in_channels=_base_.tiny_channels[2]),
)
