# COCO boxes without masks, with the augmentation of coco_instance.py.
_base_ = './coco_instance.py'

load_boxes = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline = _base_.train_pipeline
train_pipeline[2] = load_boxes
test_pipeline = _base_.test_pipeline
test_pipeline[2] = load_boxes
tta_pipeline = _base_.tta_pipeline
tta_pipeline[2] = load_boxes

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
