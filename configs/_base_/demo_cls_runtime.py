# Short classifier runs that count iterations: frequent logs, only the last checkpoint.
_base_ = './cls_runtime.py'

default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1, save_best=None),
)
log_processor = dict(by_epoch=False, window_size=20)
