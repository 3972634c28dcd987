_base_ = './detrex_focalnet_l_fl3_4scale_12e.py'

model = dict(backbone=dict(**_base_.large_fl4, normalize_modulator=False))
# Start from the released detector:
# load_from = 'https://github.com/IDEA-Research/detrex-storage/releases/download/v0.2.1/dino_focal_large_lrf_384_fl4_4scale_12ep.pth'
