# The generated shapes (tools/make_shapes.py) in COCO's layout: small images as they are, flipped.
_base_ = './coco_instance.py'

data_root = 'data/shapes/coco/'
metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star'),
    palette=[(230, 57, 70), (69, 123, 230), (255, 190, 11), (42, 157, 80)],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (160, 160)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].scale = (160, 160)

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

val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
