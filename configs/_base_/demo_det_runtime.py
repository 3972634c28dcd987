# Short mmdet runs: frequent logs, only the last checkpoint.
_base_ = './det_iter_runtime.py'

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=100, max_keep_ckpts=1),
    visualization=dict(score_thr=0.5),
)
visualizer = dict(line_width=1)
log_processor = dict(window_size=20)
