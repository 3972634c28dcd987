# Mask2Former in mmseg for the 150 classes of ADE20K. Inheriting configs set the architecture
# and the channels.
_base_ = './mask2former_head.py'

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(640, 640),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type='FocalNet'),
    decode_head=dict(
        **_base_.mask2former_head,
        num_classes=150,
        align_corners=False,
        train_cfg=_base_.mask2former_train_cfg,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
# The last weight is for the class "no object".
model['decode_head']['loss_cls']['class_weight'] = [1.0] * 150 + [0.1]
