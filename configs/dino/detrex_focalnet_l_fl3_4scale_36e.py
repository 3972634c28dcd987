_base_ = './detrex_focalnet_l_fl3_4scale_12e.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=36, milestones=[33], gamma=0.1)]
# Start from the released detector:
# load_from = 'https://github.com/IDEA-Research/detrex-storage/releases/download/v0.4.0/dino_focal_large_3level_4scale_36ep.pth'
