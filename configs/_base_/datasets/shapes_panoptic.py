# The generated shapes (tools/make_shapes.py) with COCO's panoptic labels: 4 things, 3 textures.
_base_ = './coco_panoptic.py'

data_root = 'data/shapes/coco/'
things = ('circle', 'square', 'triangle', 'star')
stuff = ('stripes', 'dots', 'noise')
metainfo = dict(
    classes=things + stuff,
    thing_classes=things,
    stuff_classes=stuff,
    palette=[
        *((230, 57, 70), (69, 123, 230), (255, 190, 11), (42, 157, 80)),
        *((200, 182, 226), (168, 218, 220), (224, 204, 170)),
    ],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (160, 160)

# Loading is so cheap that worker processes only cost start-up time.
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **workers,
    batch_size=8,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    **workers,
    batch_size=8,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

annotations = data_root + 'annotations/'
val_evaluator = [
    dict(
        type='CocoPanopticMetric',
        ann_file=annotations + 'panoptic_val2017.json',
        seg_prefix=annotations + 'panoptic_val2017/',
    ),
    dict(
        type='CocoMetric',
        ann_file=annotations + 'instances_val2017.json',
        metric=['bbox', 'segm'],
    ),
]
test_evaluator = val_evaluator
