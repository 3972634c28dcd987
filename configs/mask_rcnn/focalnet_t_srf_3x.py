_base_ = './focalnet_t_3x.py'

model = dict(backbone=_base_.tiny_srf)
