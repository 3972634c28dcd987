# The recipe of detrex: another position encoding, more noise on the boxes of denoising queries.
_base_ = './focalnet_l_fl3_4scale_12e.py'

model = dict(
    positional_encoding=dict(temperature=10000, offset=-0.5),
    dn_cfg=dict(box_noise_scale=1.0),
)
# Start from the released detector:
# load_from = 'https://github.com/IDEA-Research/detrex-storage/releases/download/v0.2.1/dino_focal_large_lrf_384_4scale_12ep.pth'
