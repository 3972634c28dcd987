# COCO panoptic labels with large-scale jitter to 1024x1024. Validation also scores instances.
_base_ = './coco_instance_lsj.py'

load_labels = dict(type='LoadPanopticAnnotations')
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(type='SkipUnreadable', load=load_labels)
del train_pipeline[6]  # keep all segments
test_pipeline = _base_.test_pipeline
test_pipeline[2] = load_labels

train_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = [
    dict(
        type='CocoPanopticMetric',
        ann_file=_base_.data_root + 'annotations/panoptic_val2017.json',
        seg_prefix=_base_.data_root + 'annotations/panoptic_val2017/',
    ),
    _base_.val_evaluator,
]
test_evaluator = val_evaluator
