_base_ = './default_runtime.py'

default_scope = 'mmseg'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [dict(type='CheckLabelsHook')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
# Synchronize batch norms across GPUs. With one GPU or on the CPU, they stay normal batch norms.
sync_bn = 'torch'
