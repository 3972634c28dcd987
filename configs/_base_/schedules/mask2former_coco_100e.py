# 100 epochs of COCO at batch size 16, counted in iterations.
_base_ = './mask2former_coco_50e.py'

max_iters = 737500
train_cfg = dict(max_iters=max_iters, dynamic_intervals=[(max_iters // 5000 * 5000 + 1, max_iters)])
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=max_iters, milestones=[655556, 710184])
