# The monolithic FocalNet-B/16 (Table 13), one stage of stride 16 like a plain ViT, with the neck of
# ViTDet. The paper uses it only as a classifier; the 1x recipe is that of focalnet_b_1x.py.
_base_ = [
    '../_base_/models/mask_rcnn_sfp.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/det_runtime.py',
]

# Kernels 3, 5, 7 of pretraining expand to 9, 11, 13 by the paper's rule (+6). The links to the
# ImageNet checkpoint (2022) are dead. To start from your own checkpoint:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH.
model = dict(
    backbone=dict(arch='base_iso', focal_windows=9, drop_path_rate=0.3),
    neck=dict(in_channels=[768]),
)
