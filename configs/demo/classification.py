# `make demo MODEL=classification`: classification of the generated shapes. The other demos use the
# same backbone and converge faster from the checkpoint of this one.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/shapes_crops.py',
    '../_base_/schedules/demo.py',
    '../_base_/demo_cls_runtime.py',
]

model = dict(backbone=_base_.small_backbone, num_classes=4, mix=None)

max_iters = 700
train_cfg = dict(max_iters=max_iters, val_interval=100)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
auto_scale_lr = dict(base_batch_size=64)
