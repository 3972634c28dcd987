# ImageNet-1K at 384x384. Test images are resized to a square without a crop, as for Swin.
_base_ = './imagenet.py'

train_pipeline = _base_.train_pipeline
train_pipeline[2].size = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(384, 384), keep_ratio=False)
del test_pipeline[2]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
