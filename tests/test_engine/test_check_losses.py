"""Losses that are no numbers end a run; what is said of them."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.structures import BaseDataElement
from stacks import float16_on_cpu

from mmfocalnet import CheckLossesHook
from mmfocalnet.errors import UserError


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


def test_finite_losses_and_other_outputs_pass(runner):
    look(runner, loss=3.0, loss_cls=1.0, loss_box=2.0, acc=float('nan'))


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_the_first_bad_term_is_reported_before_the_sum(runner, value):
    with pytest.raises(UserError) as error:
        look(runner, loss=float(value), loss_cls=1.0, loss_box=float(value), loss_z=float(value))
    message = str(error.value)
    assert f'loss_box is {value} at iteration 12' in message and '0.jpg, 1.jpg' in message


def test_only_the_sum_is_bad_and_the_last_checkpoint_is_reported(runner):
    runner.message_hub.update_info('last_ckpt', 'work/iter_10.pth')
    with pytest.raises(UserError, match=r'loss is inf .*work/iter_10\.pth'):
        look(runner, loss=float('inf'), loss_cls=3e38, loss_box=3e38)


def test_many_images_and_images_without_a_path(runner):
    with pytest.raises(UserError, match=r'9\.jpg and 2 more'):
        look(runner, images=12, loss=float('nan'))
    batch = dict(data_samples=[BaseDataElement(metainfo=dict(img_id=7)), BaseDataElement()])
    with pytest.raises(UserError, match=r'with 7, '):
        check(runner, batch, dict(loss=torch.tensor(torch.nan)))


@float16_on_cpu
def test_infinite_gradients_with_and_without_a_loss_scale(runner):
    runner.message_hub.update_scalar('train/grad_norm', float('inf'))
    with pytest.raises(UserError, match=r'gradients is inf at iteration 12'):
        look(runner, loss=1.0)
    runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu')
    look(runner, loss=1.0)


@float16_on_cpu
def test_a_loss_scale_below_the_minimum(runner):
    """With PyTorch's scaler for the CPU in place of that for GPUs."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu')
    with pytest.raises(UserError, match=r'loss scale, .* is 3\.05\S+e-05 at iteration 12'):
        for runner.iter in range(40):
            scaler.scale(weight * torch.nan).sum().backward()
            scaler.step(optimizer)
            scaler.update()
            runner.iter = 11
            look(runner, loss=1.0)
    assert weight.item() == 1
