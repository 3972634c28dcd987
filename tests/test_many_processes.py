"""Two gloo processes with half of every batch give the gradients of one with the whole.

This file is also what they run: torchrun ... tests/test_many_processes.py OUT
"""

import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

import mmfocalnet  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
# Batch norm of the CPU knows its own process only; SyncBN, which knows all, is for GPUs.
GROUP_NORM = dict(type='GN', num_groups=2)
# Weights of classes would be divided by their sum in a process's own half.
LOSS = dict(class_weight=None)
HEADS = {
    'upernet': dict(
        decode_head=dict(
            in_channels=[8, 16, 32, 64],
            channels=8,
            dropout_ratio=0,
            norm_cfg=GROUP_NORM,
            loss_decode=LOSS,
        ),
        auxiliary_head=dict(
            in_channels=32, channels=8, dropout_ratio=0, norm_cfg=GROUP_NORM, loss_decode=LOSS
        ),
    ),
    'atss': dict(
        neck=dict(in_channels=[16, 32, 64], out_channels=32),
        bbox_head=dict(in_channels=32, feat_channels=32),
    ),
}
CASES = list(itertools.product(HEADS, (False, True), (1, 2)))
SIZE = 64


def build(head, use_checkpoint):
    cfg = Config.fromfile(ROOT / f'configs/demo/{head}.py')
    backbone = dict(embed_dim=8, drop_path_rate=0.0, use_checkpoint=use_checkpoint)
    cfg.merge_from_dict(dict(model=dict(HEADS[head], backbone=backbone)))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    if head == 'atss':  # whose anchors are float32 otherwise, and with them its targets
        anchors = model.bbox_head.prior_generator
        anchors.grid_priors = partial(anchors.grid_priors, dtype=torch.float64)
    return model.double()


def reduce_without_eps(loss, weight=None, reduction='mean', avg_factor=None):
    """As mmdet's ``weight_reduce_loss``, which adds 1.2e-7 to a process's number of positives.

    With it the gradients of ATSS agree to 3e-9 only.
    """
    return (loss if weight is None else loss * weight).sum() / avg_factor


def patch_losses(set_attribute=setattr):
    from mmdet.models.losses import cross_entropy_loss, focal_loss, utils

    for module in (cross_entropy_loss, focal_loss, utils):
        set_attribute(module, 'weight_reduce_loss', reduce_without_eps)


def make_sample(head, index):
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (SIZE, SIZE))
    if head == 'upernet':
        from mmseg.structures import SegDataSample

        labels = torch.randint(7, (1, SIZE, SIZE))
        return SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=shapes)
    from mmdet.structures import DetDataSample

    # Of different numbers, so that the number in a batch is not that in its half.
    corners = torch.rand(2 + 3 * index, 2, dtype=torch.float64) * SIZE / 2
    instances = InstanceData(
        bboxes=torch.cat((corners, corners + 8 + torch.rand_like(corners) * SIZE / 3), dim=1),
        labels=torch.randint(4, (len(corners),)),
    )
    shapes['batch_input_shape'] = (SIZE, SIZE)
    return DetDataSample(gt_instances=instances, metainfo=shapes)


def make_batches(head, count):
    """Batches of two images."""
    torch.manual_seed(1)
    return [
        (
            torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64),
            [make_sample(head, index) for index in range(2)],
        )
        for _ in range(count)
    ]


def gradients(model, batches):
    """Those of one step over all batches, accumulated."""
    # Its momentum after the first step is the gradient, which the wrapper clears.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapper = OptimWrapper(optimizer, accumulative_counts=len(batches))
    inner = getattr(model, 'module', model)
    wrapper.initialize_count_status(model, 0, len(batches))
    for inputs, samples in batches:
        with wrapper.optim_context(model):
            losses = model(inputs, samples, mode='loss')
        loss, _ = inner.parse_losses(losses)
        wrapper.update_params(loss)
    return {
        name.removeprefix('module.'): optimizer.state[value]['momentum_buffer']
        for name, value in model.named_parameters()
    }


def run_in_one_of_two(out):
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    patch_losses()
    found = []
    for head, use_checkpoint, count in CASES:
        model = MMDistributedDataParallel(build(head, use_checkpoint), broadcast_buffers=False)
        halves = [
            (inputs[rank : rank + 1], samples[rank : rank + 1])
            for inputs, samples in make_batches(head, count)
        ]
        found.append(gradients(model, halves))
    if rank == 0:
        torch.save(found, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    out = tmp_path_factory.mktemp('gradients') / 'of_two.pth'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    result = subprocess.run(
        [*command, __file__, out], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(zip(CASES, torch.load(out, weights_only=True), strict=True))


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = gradient.abs().max()
        assert largest > 0 or not name.startswith('backbone.'), name
        assert (found[name] - gradient).abs().max() <= 1e-10 * largest, name


@pytest.mark.parametrize(('head', 'use_checkpoint', 'count'), CASES)
def test_two_processes_equal_one(of_two, monkeypatch, head, use_checkpoint, count):
    patch_losses(monkeypatch.setattr)
    expected = gradients(build(head, use_checkpoint), make_batches(head, count))
    assert_close(of_two[head, use_checkpoint, count], expected)


def test_accumulation_equals_a_large_batch(of_two):
    """Where each image weighs the same; detectors divide by a batch's number of positives."""
    batches = make_batches('upernet', 2)
    inputs, samples = zip(*batches, strict=True)
    whole = [(torch.cat(inputs), [sample for batch in samples for sample in batch])]
    assert_close(of_two['upernet', False, 2], gradients(build('upernet', False), whole))


if __name__ == '__main__':
    run_in_one_of_two(sys.argv[1])
