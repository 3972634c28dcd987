# The generated shapes in COCO format, boxes and masks: small images with random flips.
_base_ = ['./coco_instance.py', './shapes.py']

data_root = 'data/shapes/coco/'
source = dict(
    data_root=data_root, metainfo=dict(classes=_base_.things, palette=_base_.thing_palette)
)

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (160, 160)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].scale = (160, 160)

train_dataloader = dict(
    **_base_.shapes_loader,
    sampler=dict(type='SeededInfiniteSampler'),
    batch_sampler=None,
    dataset=dict(**source, pipeline=train_pipeline),
)
val_dataloader = dict(**_base_.shapes_loader, dataset=dict(**source, pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
