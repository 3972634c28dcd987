_base_ = ['./focalnet_t_1x.py', '../_base_/backbones/small.py']

model = dict(backbone=dict(**_base_.small_lrf, drop_path_rate=0.2))
