# Fine-tuning at a higher resolution, as published for Swin: 5 epochs of warm-up, weight decay 1e-8.
_base_ = './imagenet_300e.py'

train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 5
param_scheduler[1].update(begin=5, end=30)
