_base_ = './focalnet_s_1x.py'

model = dict(backbone=_base_.small_srf)
