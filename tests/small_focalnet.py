"""Small FocalNets with random weights, and their state dicts in the release's layout."""

import torch

from mmfocalnet import FocalNet

SMALL = dict(embed_dim=8, depths=(1, 1, 2, 1), focal_levels=2, focal_windows=3)
LARGE = dict(use_conv_embed=True, use_postln=True, use_layerscale=True)
CLASSES = 10


def small(**kwargs):
    """A network without zero gates and biases."""
    net = FocalNet(**{**SMALL, 'drop_path_rate': 0.0, **kwargs})
    net.init_weights()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def classifier_state(net):
    """State dict of the release's classification files."""
    dim = net.num_features[-1]
    return {
        **{k: v for k, v in net.state_dict().items() if not k.startswith('norm')},
        'norm.weight': torch.randn(dim),
        'norm.bias': torch.randn(dim),
        'head.weight': torch.randn(CLASSES, dim),
        'head.bias': torch.randn(CLASSES),
    }
