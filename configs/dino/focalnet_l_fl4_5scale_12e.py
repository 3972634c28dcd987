# The recipe of FocalNet-DINO: four focal levels, five scales.
_base_ = [
    '../_base_/models/dino_5scale.py',
    '../_base_/backbones/large.py',
    '../_base_/datasets/coco_dino.py',
    '../_base_/schedules/dino_12e.py',
    '../_base_/det_runtime.py',
]
custom_imports = dict(imports=['mmfocalnet', 'mmfocalnet.models.dino'])

model = dict(
    backbone=dict(**_base_.large_fl4, drop_path_rate=0.3),
    neck=dict(in_channels=_base_.large_channels),
)
# Start from the released detector, trained on Objects365 and then on COCO:
# load_from = 'https://huggingface.co/microsoft/focalnet-large-fl4-dino-o365-cocoft/resolve/main/focalnet_large_fl4_o365_finetuned_on_coco.pth'
