"""AdamW in one pass over each parameter: the same steps and state, on any parameters."""

import copy

import pytest
import torch
from torch.optim import AdamW

from mmfocalnet import FusedAdamW


def train(optimizer, model, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def groups_of(model):
    return [dict(params=[p], weight_decay=0.1 * i) for i, p in enumerate(model.parameters())]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))


def test_steps_equal_those_of_adamw(model):
    reference = copy.deepcopy(model)
    expected = train(AdamW(groups_of(reference), lr=0.01), reference)
    torch.testing.assert_close(train(FusedAdamW(groups_of(model), lr=0.01), model), expected)


@pytest.mark.skipif(torch.__version__ < '2.4', reason='PyTorch fuses on GPUs only')
def test_is_fused_for_any_iterable_of_parameters(model):
    assert FusedAdamW(model.parameters(), lr=0.01).param_groups[0]['fused']
    assert all(group['fused'] for group in FusedAdamW(groups_of(model), lr=0.01).param_groups)
    assert not FusedAdamW(model.parameters(), fused=False).param_groups[0]['fused']


def test_is_not_fused_where_pytorch_cannot(model):
    groups = groups_of(model)
    optimizer = FusedAdamW(groups, differentiable=True)
    assert not any(group['fused'] for group in optimizer.param_groups)
    assert len(optimizer.param_groups) == len(groups)


def test_continues_from_a_checkpoint_of_adamw(model):
    optimizer = AdamW(groups_of(model), lr=0.01)
    train(optimizer, model)
    resumed = copy.deepcopy(model)
    after = FusedAdamW(groups_of(resumed), lr=0.01)
    after.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(after, resumed), train(optimizer, model))


@pytest.mark.skipif(torch.__version__ < '2.4', reason='PyTorch fuses on GPUs only')
def test_stays_fused_with_a_checkpoint_of_adamw(model):
    optimizer = AdamW(groups_of(model), lr=0.01)
    train(optimizer, model)
    after = FusedAdamW(groups_of(model), lr=0.01)
    after.load_state_dict(optimizer.state_dict())
    assert all(group['fused'] for group in after.param_groups)
    scaler = torch.amp.GradScaler('cpu')
    scaler.scale(model(torch.randn(4, 8)).square().mean()).backward()
    scaler.step(after)
    with pytest.raises(ValueError, match='parameter groups'):
        after.load_state_dict(AdamW(model.parameters()).state_dict())
