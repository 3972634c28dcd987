# `make demo MODEL=upernet`: semantic segmentation of the generated shapes with a small FocalNet.
_base_ = [
    '../_base_/models/upernet.py',
    '../_base_/datasets/shapes_semantic.py',
    '../_base_/schedules/adamw.py',
    '../_base_/seg_runtime.py',
]

num_classes = 7
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(
        embed_dim=32, depths=[1, 1, 2, 1], focal_levels=2, focal_windows=3, drop_path_rate=0.0
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=num_classes),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=num_classes),
)

max_iters = 1200
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=200)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters, eta_min=1e-6),
]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=100, max_keep_ckpts=1),
)
log_processor = dict(window_size=20)
randomness = dict(seed=0)
