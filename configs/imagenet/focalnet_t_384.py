_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/backbones/tiny.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_30e.py',
    '../_base_/cls_runtime.py',
]

model = dict(
    backbone=dict(arch='tiny_lrf', drop_path_rate=0.2),
    # A checkpoint of focalnet_t.py works as well.
    init_cfg=_base_.tiny_lrf.init_cfg,
)
