_base_ = ['./focalnet_t_384.py', '../_base_/backbones/base.py']

model = dict(backbone=dict(arch='base_lrf', drop_path_rate=0.5), init_cfg=_base_.base_lrf.init_cfg)
