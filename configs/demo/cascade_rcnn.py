# `make demo MODEL=cascade_rcnn`: the model of mask_rcnn.py with three box heads.
_base_ = './mask_rcnn.py'

box_head = _base_.model.roi_head.bbox_head
rcnn = _base_.model.train_cfg.rcnn
box_heads = [
    dict(
        box_head,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
        reg_decoded_bbox=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
    )
    for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
]
stages = [
    dict(
        rcnn,
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=overlap,
            neg_iou_thr=overlap,
            min_pos_iou=overlap,
            match_low_quality=False,
        ),
    )
    for overlap in (0.5, 0.6, 0.7)
]

model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=box_heads,
    ),
    train_cfg=dict(rcnn=stages),
)
