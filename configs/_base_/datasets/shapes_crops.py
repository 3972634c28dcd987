# Small images of one generated shape each (tools/make_shapes.py --crops), with random flips.
_base_ = ['./imagenet.py', './shapes.py']

train_pipeline = [
    dict(type='SeedSample'),
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackImage'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackImage')]

source = dict(data_root='data/shapes_crops', metainfo=dict(classes=_base_.things))
loader = dict(_base_.shapes_loader, batch_size=64)
train_dataloader = dict(
    **loader,
    sampler=dict(type='SeededInfiniteSampler'),
    dataset=dict(**source, pipeline=train_pipeline),
)
val_dataloader = dict(**loader, dataset=dict(**source, pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
