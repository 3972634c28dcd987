# Mask2Former for the 80 thing and 53 stuff classes of COCO. Inheriting configs set the architecture
# and the channels.
_base_ = './mask2former_head.py'

classes = dict(num_things_classes=80, num_stuff_classes=53)
model = dict(
    type='Mask2Former',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
        batch_augments=[
            dict(
                type='BatchFixedSizePad',
                size=(1024, 1024),
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=True,
                seg_pad_value=255,
            )
        ],
    ),
    backbone=dict(type='FocalNet'),
    panoptic_head=dict(
        **_base_.mask2former_head,
        **classes,
    ),
    panoptic_fusion_head=dict(
        type='MaskFormerFusionHead', **classes, loss_panoptic=None, init_cfg=None
    ),
    train_cfg=_base_.mask2former_train_cfg,
    test_cfg=dict(
        panoptic_on=True,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,  # instances
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
# The last weight is for the class "no object".
model['panoptic_head']['loss_cls']['class_weight'] = [1.0] * 133 + [0.1]
