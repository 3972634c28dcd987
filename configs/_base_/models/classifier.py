# FocalNet as a classifier. Inheriting configs set the architecture.
model = dict(
    type='FocalNetClassifier',
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(type='FocalNet', out_indices=[3]),
    num_classes=1000,
    label_smoothing=0.1,
    mix=dict(mixup=0.8, cutmix=1.0),
)
