# The generated shapes with COCO panoptic labels: 4 things and 3 textures.
_base_ = ['./coco_panoptic.py', './shapes.py']

data_root = 'data/shapes/coco/'
source = dict(
    data_root=data_root,
    metainfo=dict(
        classes=_base_.things + _base_.stuff,
        thing_classes=_base_.things,
        stuff_classes=_base_.stuff,
        palette=_base_.thing_palette + _base_.stuff_palette,
    ),
)

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='SkipUnreadable', load=dict(type='LoadPanopticAnnotations')),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (160, 160)

train_dataloader = dict(
    **_base_.shapes_loader,
    sampler=dict(type='SeededInfiniteSampler'),
    batch_sampler=None,
    dataset=dict(**source, pipeline=train_pipeline),
)
val_dataloader = dict(**_base_.shapes_loader, dataset=dict(**source, pipeline=test_pipeline))
test_dataloader = val_dataloader

panoptic, instances = _base_.val_evaluator
panoptic.ann_file = data_root + 'annotations/panoptic_val2017.json'
panoptic.seg_prefix = data_root + 'annotations/panoptic_val2017/'
instances.ann_file = data_root + 'annotations/instances_val2017.json'
val_evaluator = [panoptic, instances]
test_evaluator = val_evaluator
