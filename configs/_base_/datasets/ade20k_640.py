# ADE20K, 150 classes, crops of 640x640.
_base_ = './ade20k.py'

train_pipeline = _base_.train_pipeline
train_pipeline[3] = dict(
    type='RandomChoiceResize',
    scales=[side * 64 for side in range(5, 21)],
    resize_type='ResizeShortestEdge',
    max_size=2560,
)
train_pipeline[4].crop_size = (640, 640)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (2560, 640)
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(resize, scale=tuple(side * 640 // 512 for side in resize.scale))
    for resize in tta_pipeline[1].transforms[0]
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
