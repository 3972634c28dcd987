# The recipe of detrex, which does not normalize the modulator.
_base_ = './focalnet_l_fl4_5scale_12e.py'

model = dict(
    backbone=dict(normalize_modulator=False),
    positional_encoding=dict(temperature=10000, offset=-0.5),
    dn_cfg=dict(box_noise_scale=1.0),
)
# Start from the released detector:
# load_from = 'https://github.com/IDEA-Research/detrex-storage/releases/download/v0.2.1/dino_focalnet_large_lrf_384_fl4_5scale_12ep.pth'
