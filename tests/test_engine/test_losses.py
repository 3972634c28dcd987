"""Losses that are no numbers end a run; what is said of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement
from scipy.optimize import linear_sum_assignment

from mmfocalnet import CheckLossesHook
from mmfocalnet.errors import OneProcessError, UserError


@pytest.fixture
def runner(request):
    return SimpleNamespace(
        iter=11, message_hub=MessageHub(request.node.name), optim_wrapper=SimpleNamespace()
    )


def look(runner, images=2, **outputs):
    samples = [BaseDataElement(metainfo=dict(img_path=f'{n}.jpg')) for n in range(images)]
    values = {name: torch.tensor(value) for name, value in outputs.items()}
    check(runner, dict(data_samples=samples), values)


def check(runner, batch, outputs):
    hook = CheckLossesHook()
    hook.before_train_iter(runner, 0, batch)
    hook.after_train_iter(runner, 0, batch, outputs)


def test_numbers_pass_and_so_does_what_is_no_loss(runner):
    look(runner, loss=3.0, loss_cls=1.0, loss_box=2.0, acc=float('nan'))


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_the_first_bad_term_is_named_before_the_sum(runner, value):
    with pytest.raises(UserError) as error:
        look(runner, loss=float(value), loss_cls=1.0, loss_box=float(value), loss_z=float(value))
    assert str(error.value).startswith(
        f'loss_box is {value} at iteration 12, with 0.jpg, 1.jpg: look at these images'
    )
    assert str(error.value).endswith('nothing was saved yet.')


def test_a_sum_alone_and_the_last_checkpoint(runner):
    runner.message_hub.update_info('last_ckpt', 'work/iter_10.pth')
    with pytest.raises(UserError, match=r'^loss is inf .*; work/iter_10.pth is from before'):
        look(runner, loss=float('inf'), loss_cls=3e38, loss_box=3e38)


def test_many_images_and_images_without_a_path(runner):
    with pytest.raises(UserError, match=r'9.jpg and 2 more: look'):
        look(runner, images=12, loss=float('nan'))
    batch = dict(data_samples=[BaseDataElement(metainfo=dict(img_id=7)), BaseDataElement()])
    with pytest.raises(UserError, match=r'with 7, an image without a name: look'):
        check(runner, batch, dict(loss=torch.tensor(torch.nan)))


def test_gradients_unless_a_loss_scale_leaves_the_step_out(runner):
    runner.message_hub.update_scalar('train/grad_norm', float('inf'))
    with pytest.raises(UserError, match=r'^The norm of the gradients is inf at iteration 12'):
        look(runner, loss=1.0)
    runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu')
    look(runner, loss=1.0)


def test_gradients_that_no_loss_scale_makes_finite(runner):
    """With PyTorch's scaler for the CPU in place of that for GPUs."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu')
    with pytest.raises(
        UserError, match=r'^The loss scale, .* is 3.05\S+e-05 at iteration 12, with'
    ):
        for runner.iter in range(40):
            scaler.scale(weight * torch.nan).sum().backward()
            scaler.step(optimizer)
            scaler.update()
            runner.iter = 11
            look(runner, loss=1.0)
    assert weight.item() == 1


@pytest.mark.parametrize('cost', [np.nan, np.inf])
def test_a_matcher_that_refuses_costs(runner, cost):
    hook = CheckLossesHook()
    hook.before_train_iter(runner, 0, dict(data_samples=[BaseDataElement(metainfo=dict(img_id=7))]))
    with (
        pytest.raises(OneProcessError, match=r'^The costs .* at iteration 12, with 7: look at'),
        hook.explaining(runner),
    ):
        linear_sum_assignment(np.full((2, 2), cost))
    with pytest.raises(ValueError, match=r'^another$'), hook.explaining(runner):
        raise ValueError('another')
