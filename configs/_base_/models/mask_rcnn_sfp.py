# Mask R-CNN on a monolithic FocalNet: the neck builds a feature pyramid from its only feature map,
# of stride 16.
_base_ = './mask_rcnn_fpn.py'

model = dict(
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', out_channels=256, num_outs=5),
)
