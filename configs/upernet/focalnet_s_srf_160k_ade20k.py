_base_ = './focalnet_s_160k_ade20k.py'

model = dict(backbone=_base_.small_srf)
