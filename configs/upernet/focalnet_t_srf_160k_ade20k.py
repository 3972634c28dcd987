_base_ = './focalnet_t_160k_ade20k.py'

model = dict(backbone=_base_.tiny_srf)
