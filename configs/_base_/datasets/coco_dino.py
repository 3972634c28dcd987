# COCO boxes with the augmentation of DINO: images without boxes too, no limit of the longer side
# before the crop.
_base_ = './coco_detection.py'

train_pipeline = _base_.train_pipeline
train_pipeline[4].transforms[1][0].scales = [(400, 4200), (500, 4200), (600, 4200)]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline)
)
