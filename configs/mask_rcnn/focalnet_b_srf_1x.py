_base_ = './focalnet_b_1x.py'

model = dict(backbone=_base_.base_srf)
