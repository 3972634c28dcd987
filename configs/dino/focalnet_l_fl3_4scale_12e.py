# The recipe of FocalNet-DINO. Its weights are not public.
_base_ = [
    '../_base_/models/dino.py',
    '../_base_/backbones/large.py',
    '../_base_/datasets/coco_dino.py',
    '../_base_/schedules/dino_12e.py',
    '../_base_/det_runtime.py',
]
custom_imports = dict(imports=['mmfocalnet', 'mmfocalnet.models.dino'])

model = dict(
    backbone=dict(**_base_.large_fl3, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.large_channels[1:]),
)
