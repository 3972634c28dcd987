"""Learning rate and weight decay of every parameter under layer-wise decay."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmfocalnet import FocalNet
from mmfocalnet.engine.layer_decay import layer_ids
from mmfocalnet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
NET = dict(
    embed_dim=4, depths=(1, 2), focal_levels=1, focal_windows=3, use_layerscale=True,
    use_postln_in_modulation=True, drop_path_rate=0,
)  # fmt: skip
# Whether each parameter of a block decays; then layer and decay of each parameter of the network.
# With three blocks the heads are layer 4.
BLOCK = {
    'norm1.weight': False,
    'norm1.bias': False,
    'modulation.f.weight': True,
    'modulation.f.bias': False,
    'modulation.h.weight': True,
    'modulation.h.bias': False,
    'modulation.proj.weight': True,
    'modulation.proj.bias': False,
    'modulation.focal_layers.0.0.weight': True,
    'modulation.ln.weight': False,
    'modulation.ln.bias': False,
    'norm2.weight': False,
    'norm2.bias': False,
    'mlp.fc1.weight': True,
    'mlp.fc1.bias': False,
    'mlp.fc2.weight': True,
    'mlp.fc2.bias': False,
    'gamma_1': False,
    'gamma_2': False,
}
EMBED = {'proj.weight': True, 'proj.bias': False, 'norm.weight': False, 'norm.bias': False}
EXPECTED = {
    **{f'patch_embed.{name}': (0, decays) for name, decays in EMBED.items()},
    **{f'layers.0.blocks.0.{name}': (1, decays) for name, decays in BLOCK.items()},
    **{f'layers.0.downsample.{name}': (1, decays) for name, decays in EMBED.items()},
    **{f'layers.1.blocks.0.{name}': (2, decays) for name, decays in BLOCK.items()},
    **{f'layers.1.blocks.1.{name}': (3, decays) for name, decays in BLOCK.items()},
    **{f'norm{i}.{name}': (4, False) for i in range(2) for name in ('weight', 'bias')},
}
LR, DECAY = 0.5, 0.25


class Model(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = FocalNet(**{**NET, **kwargs})
        self.head = nn.Sequential(nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2))


def build(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY),
            constructor='FocalNetLayerDecayOptimizerConstructor',
            paramwise_cfg=paramwise,
        ),
    )


def groups_of(model, **paramwise):
    """Learning rate and weight decay by name of the parameter."""
    wrapper = build(model, decay_rate=0.5, **paramwise)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }


def test_rate_and_decay_of_every_parameter():
    model = Model()
    assert layer_ids(model.backbone) == {name: layer for name, (layer, _) in EXPECTED.items()}
    expected = {
        f'backbone.{name}': (LR * 0.5 ** (4 - layer), DECAY if decays else 0)
        for name, (layer, decays) in EXPECTED.items()
    }
    expected['head.0.weight'] = (LR, DECAY)
    for name in ('head.0.bias', 'head.1.weight', 'head.1.bias'):
        expected[name] = (LR, 0)
    assert groups_of(model) == expected


def test_in_the_wrapper_of_distributed_training():
    alone, wrapped = groups_of(Model()), groups_of(nn.ModuleDict(dict(module=Model())))
    assert wrapped == {f'module.{name}': group for name, group in alone.items()}


def test_custom_keys_multiply_the_rate():
    groups = groups_of(Model(), custom_keys={'modulation.f': dict(lr_mult=0.1, decay_mult=2.0)})
    assert groups['backbone.layers.0.blocks.0.modulation.f.weight'] == pytest.approx(
        (LR * 0.1 * 0.5**3, DECAY * 2)
    )
    assert groups['backbone.layers.0.blocks.0.modulation.h.weight'] == (LR * 0.5**3, DECAY)


def test_frozen_parameters_are_not_updated():
    model = Model(frozen_stages=1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    wrapper = build(model, decay_rate=0.5)
    features = model.backbone(torch.randn(1, 3, 16, 16))[1]
    wrapper.update_params(model.head(features).square().sum())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert 'backbone.layers.0.blocks.0.modulation.f.weight' in frozen
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, before[name])
    assert not torch.equal(model.head[0].weight, before['head.0.weight'])


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.9', True])
def test_invalid_decay_rate(rate):
    with pytest.raises(ConfigError) as error:
        build(Model(), decay_rate=rate)
    assert 'decay_rate' in str(error.value) and repr(rate) in str(error.value)


@pytest.mark.parametrize(
    ('model', 'paramwise', 'token'),
    [
        (nn.Linear(2, 2), {}, 'Linear'),
        (Model(), dict(num_layers=12), 'num_layers'),
        (Model(), dict(norm_decay=0), 'norm_decay'),
    ],
    ids=['no FocalNet', 'other depth', 'unknown key'],
)
def test_configs_that_do_not_fit(model, paramwise, token):
    with pytest.raises(ConfigError, match=token):
        groups_of(model, **paramwise)


def test_optimizer_without_weight_decay():
    cfg = dict(
        optimizer=dict(type='AdamW', lr=LR),
        constructor='FocalNetLayerDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.9),
    )
    with pytest.raises(ConfigError, match='weight_decay'):
        build_optim_wrapper(Model(), cfg)


def test_with_a_published_config():
    """The example of docs/training.md."""
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/focalnet_b_1x.py')
    cfg.merge_from_dict(
        {
            'optim_wrapper.constructor': 'FocalNetLayerDecayOptimizerConstructor',
            'optim_wrapper.paramwise_cfg.decay_rate': 0.9,
        }
    )
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build({**cfg.model, 'backbone': {**cfg.model.backbone, 'init_cfg': None}})
    groups = {}
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        groups[names[id(group['params'][0])]] = group['lr']
    assert groups['backbone.patch_embed.proj.weight'] == pytest.approx(1e-4 * 0.9**25)
    assert groups['backbone.layers.3.blocks.1.mlp.fc1.weight'] == pytest.approx(1e-4 * 0.9)
    assert groups['roi_head.bbox_head.fc_cls.weight'] == pytest.approx(1e-4)
