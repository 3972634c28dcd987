# The demos: a small backbone, trained from scratch. Inheriting configs may change max_iters.
_base_ = './adamw.py'

small_backbone = dict(
    embed_dim=32,
    depths=[1, 1, 2, 1],
    focal_levels=2,
    focal_windows=[9, 7, 5, 3],
    drop_path_rate=0.0,
)
small_backbone_channels = [32, 64, 128, 256]

max_iters = 400
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=100)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, end=max_iters, eta_min=1e-6),
]
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
