_base_ = ['./focalnet_t_160k_ade20k.py', '../_base_/backbones/small.py']

model = dict(backbone=_base_.small_lrf)
