# `make demo`: a small FocalNet trained from scratch on the generated shapes.
_base_ = [
    '../_base_/models/mask_rcnn_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_det_runtime.py',
]

num_classes = 4
channels = 64

model = dict(
    backbone=_base_.small_backbone,
    neck=dict(in_channels=_base_.small_backbone_channels, out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(output_size=5, sampling_ratio=2),
            out_channels=channels,
            finest_scale=16,  # default 56; most shapes are small and should use stride 8 or more
        ),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            roi_feat_size=5,
            num_classes=num_classes,
            # Classes converge later than boxes.
            loss_cls=dict(loss_weight=2.0),
        ),
        mask_roi_extractor=dict(
            roi_layer=dict(output_size=10, sampling_ratio=2), out_channels=channels
        ),
        mask_head=dict(
            num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=num_classes
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5), mask_size=20),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=30)),
)
