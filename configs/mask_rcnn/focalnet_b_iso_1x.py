# The monolithic FocalNet-B/16 (Table 13), one stage of stride 16 laid out like a plain ViT, with
# the neck of ViTDet. Beyond the paper, which has it as a classifier only: the 1x recipe is that of
# focalnet_b_1x.
_base_ = [
    '../_base_/models/mask_rcnn_sfp.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/det_runtime.py',
]

# Kernels 3, 5, 7 of pretraining grow to 9, 11, 13 by the paper's rule (+6), as do those of the
# other networks at this stride. The 2022 links to the ImageNet checkpoint are dead: give yours as
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH.
model = dict(
    backbone=dict(arch='base_iso', focal_windows=9, drop_path_rate=0.3),
    neck=dict(in_channels=[768]),
)
