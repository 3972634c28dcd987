# ImageNet-1K, one folder per class, at 224x224, with the published augmentation: RandAugment and
# random erasing. timm ignores the published colour jitter when RandAugment is on; so do we.
_base_ = './rand_augment.py'

data_root = 'data/imagenet'

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='RandomResizedCrop', size=224),
    dict(type='RandomFlip', prob=0.5),
    _base_.rand_augment,
    dict(
        type='RandomApply',
        # Erases 2 to 34 % of the image with the mean colour; the published code fills with noise.
        transforms=[
            dict(
                type='mmdet.RandomErasing',
                n_patches=1,
                ratio=(0.14, 0.58),
                squared=False,
                img_border_value=_base_.mean_bgr,
            )
        ],
        prob=0.25,
    ),
    dict(type='PackImage'),
]
# Resize the short side to 256 (the long side is unlimited), then crop the center.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='Resize',
        scale=(100000, 256),
        keep_ratio=True,
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackImage'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='SeededSampler', shuffle=True),
    dataset=dict(
        type='ImageFolder',
        data_root=data_root,
        data_prefix=dict(img='train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageFolder',
        data_root=data_root,
        data_prefix=dict(img='val'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
