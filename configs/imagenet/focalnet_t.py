_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/cls_runtime.py',
]

model = dict(backbone=dict(arch='tiny_lrf', drop_path_rate=0.2))
