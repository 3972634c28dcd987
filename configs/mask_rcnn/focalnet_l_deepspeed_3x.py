# Gradients and optimizer state spread over the GPUs (ZeRO, stage 2): docs/training.md.
_base_ = './focalnet_l_3x.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2))
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
# One file with the weights, for tools/test.py; DeepSpeed's own is a folder of pickles.
default_hooks = dict(checkpoint=dict(save_optimizer=False))
