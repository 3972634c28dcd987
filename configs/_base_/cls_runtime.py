# Classification has no scope of its own: the plugin's classes are in MMEngine's registries.
_base_ = './default_runtime.py'

default_scope = 'mmengine'
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1'),
    visualization=dict(type='ClassVisualizationHook'),
)
visualizer = dict(type='Visualizer', vis_backends=_base_.vis_backends, name='visualizer')
