_base_ = './focalnet_t_1x.py'

model = dict(backbone=_base_.tiny_srf)
