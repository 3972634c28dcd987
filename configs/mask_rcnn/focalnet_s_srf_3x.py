_base_ = './focalnet_s_3x.py'

model = dict(backbone=_base_.small_srf)
