# Mask R-CNN on the one map of stride 16 of a monolithic FocalNet, from which the neck makes the
# levels of an FPN.
_base_ = './mask_rcnn_fpn.py'

model = dict(
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', out_channels=256, num_outs=5),
)
