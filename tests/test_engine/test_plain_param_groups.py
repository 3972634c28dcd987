"""Compiled training steps with MMEngine's optimizers."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapperDict, build_optim_wrapper

from mmfocalnet.engine.hooks import PlainParamGroupsHook


def build(model):
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.05)
    paramwise = dict(bias_decay_mult=0.0)
    return build_optim_wrapper(model, ConfigDict(optimizer=optimizer, paramwise_cfg=paramwise))


@pytest.mark.skipif(not hasattr(torch.library, 'custom_op'), reason='as the compiled operators')
def test_the_step_of_an_optimizer_compiles():
    model = torch.nn.Linear(3, 2)
    wrapper = build(model)
    PlainParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=wrapper))
    assert {group['weight_decay'] for group in wrapper.param_groups} == {0.0, 0.05}
    before = model.weight.clone()

    def train_step(x):
        wrapper.update_params(model(x).square().mean())

    torch.compile(train_step, backend='eager')(torch.randn(4, 3))
    assert not torch.equal(model.weight, before)


def test_several_optimizers():
    wrappers = OptimWrapperDict(a=build(torch.nn.Linear(2, 2)), b=build(torch.nn.Linear(2, 2)))
    PlainParamGroupsHook().before_train(SimpleNamespace(optim_wrapper=wrappers))
    for wrapper in wrappers.values():
        assert {type(group) for group in wrapper.optimizer.param_groups} == {dict}
