# `make demo`: a small FocalNet from scratch on the generated shapes, in minutes on two cores.
_base_ = [
    '../_base_/models/mask_rcnn_fpn.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]

num_classes = 4
channels = 64

model = dict(
    backbone=dict(
        embed_dim=32,
        depths=[1, 1, 2, 1],
        focal_levels=2,
        focal_windows=3,
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(output_size=5, sampling_ratio=2),
            out_channels=channels,
            finest_scale=16,  # small shapes, yet most of them pooled from stride 8 and up
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
            # Outlines are found long before they are told apart.
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

max_iters = 400
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=100)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters, eta_min=1e-6),
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1),
    visualization=dict(score_thr=0.5),
)
visualizer = dict(line_width=1)
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=0)
