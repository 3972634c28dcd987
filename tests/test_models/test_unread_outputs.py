"""A model in DistributedDataParallel may leave outputs of the backbone unread."""

import os

import pytest
import torch
from forked_tools import FORKS, end, ranks_of_two
from torch.nn.parallel import DistributedDataParallel

from mmfocalnet import FocalNet


class Reader(torch.nn.Module):
    """Reads two of four outputs, like an FPN with ``start_level=1`` and ``end_level=2``."""

    def __init__(self, **settings):
        super().__init__()
        self.backbone = FocalNet(
            embed_dim=8, depths=[1] * 4, focal_windows=3, drop_path_rate=0.0, **settings
        )

    def forward(self, x):
        return sum(out.square().mean() for out in self.backbone(x)[1:3])


def train_in_one_of_two(environment, settings, out):
    os.environ.update(environment)
    torch.distributed.init_process_group('gloo')
    torch.manual_seed(0)
    model = DistributedDataParallel(Reader(**settings))
    for _ in range(3):  # without a gradient for each parameter, the second iteration raises
        model.zero_grad()
        model(torch.ones(1, 3, 64, 64)).backward()
    if torch.distributed.get_rank() == 0:
        torch.save({k: v.grad for k, v in model.module.named_parameters()}, out)
    # If DistributedDataParallel ends the process group, it holds the GIL while waiting for a thread
    # of gloo, which may need the GIL.
    del model
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    'settings', [{}, dict(use_checkpoint=True), dict(frozen_stages=1)], ids=str
)
def test_unread_outputs_train_on_two_processes(settings, tmp_path):
    out = tmp_path / 'gradients.pth'
    both = [
        FORKS.Process(target=train_in_one_of_two, args=(rank, settings, out))
        for rank in ranks_of_two()
    ]
    for process in both:
        process.start()
    assert [end(process) for process in both] == [0, 0]

    torch.manual_seed(0)
    model = Reader(**settings)
    model(torch.ones(1, 3, 64, 64)).backward()
    found = torch.load(out, weights_only=True)
    for name, value in model.named_parameters():
        if not value.requires_grad:
            assert found[name] is None
        elif value.grad is None:  # DistributedDataParallel replaces None by zeros
            assert not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], value.grad, msg=name)
    assert model.backbone.norm0.weight.grad is None
    assert model.backbone.norm1.weight.grad.any()
