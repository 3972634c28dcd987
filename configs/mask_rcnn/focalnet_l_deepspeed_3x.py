# DeepSpeed (ZeRO stage 2) shards gradients and optimizer state: see docs/training.md.
_base_ = './focalnet_l_3x.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2))
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
# Save one file with the weights for tools/test.py; DeepSpeed's own format is a folder of pickles.
default_hooks = dict(checkpoint=dict(save_optimizer=False))
