# FSDP shards weights, gradients and optimizer state across the GPUs: see docs/training.md.
_base_ = './focalnet_l_fl4_5scale_12e.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='FocalNetFSDPStrategy')
