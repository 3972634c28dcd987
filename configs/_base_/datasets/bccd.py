# BCCD: boxes of three classes of blood cells in 364 images of 640x480 pixels, here 320x240.
# docs/bccd.md downloads it and converts it into COCO's format.
_base_ = './coco_detection.py'

data_root = 'data/bccd/'
source = dict(data_root=data_root, metainfo=dict(classes=('RBC', 'WBC', 'Platelets')))
image_scale = (320, 240)

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    # Cells have no fixed orientation.
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_scale
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].scale = image_scale

train_dataloader = dict(
    batch_size=8,
    sampler=dict(type='SeededInfiniteSampler'),
    batch_sampler=None,
    dataset=dict(
        **source,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        **source,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        **source,
        ann_file='annotations/test.json',
        data_prefix=dict(img='test/'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = dict(ann_file=data_root + 'annotations/test.json')
