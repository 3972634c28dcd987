# mmfocalnet registers its classes in MMEngine's root registries, hence the scope 'mmengine'.
_base_ = './default_runtime.py'

default_scope = 'mmengine'
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1'),
    visualization=dict(type='ClassVisualizationHook'),
)
visualizer = dict(type='Visualizer', vis_backends=_base_.vis_backends, name='visualizer')
