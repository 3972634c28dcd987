# The recipe of detrex as in detrex_focalnet_l_fl3_4scale_12e.py, without normalized modulator.
_base_ = ['./focalnet_l_fl4_5scale_12e.py', '../_base_/schedules/slow_backbone.py']

model = dict(
    backbone=dict(normalize_modulator=False),
    positional_encoding=dict(temperature=10000, offset=-0.5),
    dn_cfg=dict(box_noise_scale=1.0),
)
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=True)))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=_base_.slow_backbone))
# Start from the released detector:
# load_from = 'https://github.com/IDEA-Research/detrex-storage/releases/download/v0.2.1/dino_focalnet_large_lrf_384_fl4_5scale_12ep.pth'
