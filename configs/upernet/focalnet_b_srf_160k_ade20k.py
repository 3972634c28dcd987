_base_ = './focalnet_b_160k_ade20k.py'

model = dict(backbone=_base_.base_srf)
