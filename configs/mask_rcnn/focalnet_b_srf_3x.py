_base_ = './focalnet_b_3x.py'

model = dict(backbone=_base_.base_srf)
