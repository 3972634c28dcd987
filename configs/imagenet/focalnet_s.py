_base_ = './focalnet_t.py'

model = dict(backbone=dict(arch='small_lrf', drop_path_rate=0.3))
