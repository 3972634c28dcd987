# 50 epochs of COCO at batch size 16, counted in iterations.
_base_ = './mask2former.py'

max_iters = 368750
train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=5000,
    # Also validate after the last iteration.
    dynamic_intervals=[(max_iters // 5000 * 5000 + 1, max_iters)],
)
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[327778, 355092],
        gamma=0.1,
    )
]
