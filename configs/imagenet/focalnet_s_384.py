_base_ = ['./focalnet_t_384.py', '../_base_/backbones/small.py']

model = dict(
    backbone=dict(arch='small_lrf', drop_path_rate=0.3), init_cfg=_base_.small_lrf.init_cfg
)
