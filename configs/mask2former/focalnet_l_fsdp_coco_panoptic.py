# Weights, gradients and optimizer state spread over the GPUs, block by block: docs/training.md.
_base_ = './focalnet_l_coco_panoptic.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='FocalNetFSDPStrategy')
