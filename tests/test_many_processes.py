"""Two gloo processes with half of each batch compute the gradients of one with the entire batch."""

import itertools
import os
from functools import partial

import pytest
import torch
from forked_tools import FORKS, ROOT, end, ranks_of_two
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

import mmfocalnet  # noqa: F401

# On the CPU, batch norm uses the statistics of one process; SyncBN needs GPUs.
GROUP_NORM = dict(type='GN', num_groups=2)
# Class weights would be divided by their sum over one half of the batch.
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
    if head == 'atss':  # its anchors and targets are float32 by default
        anchors = model.bbox_head.prior_generator
        anchors.grid_priors = partial(anchors.grid_priors, dtype=torch.float64)
    return model.double()


def reduce_without_eps(loss, weight=None, reduction='mean', avg_factor=None):
    """As mmdet's ``weight_reduce_loss``, without the 1.2e-7 that it adds to ``avg_factor``.

    With them the gradients of ATSS agree only to 3e-9.
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

    # The images have different numbers of boxes, so that a batch is not twice its half.
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
    """The gradients of one step, accumulated over all batches."""
    # The wrapper clears the gradients; the momentum after the first step equals them.
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


def run_in_one_of_two(environment, out):
    os.environ.update(environment)
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
    # If DistributedDataParallel ends the process group, it holds the GIL while waiting for a thread
    # of gloo, which may need the GIL.
    del model
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    """Gradients of each case, computed by two processes."""
    out = tmp_path_factory.mktemp('gradients') / 'of_two.pth'
    both = [FORKS.Process(target=run_in_one_of_two, args=(rank, out)) for rank in ranks_of_two()]
    for process in both:
        process.start()
    assert [end(process) for process in both] == [0, 0]
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
    """In a segmentor, where all images have the same weight."""
    batches = make_batches('upernet', 2)
    inputs, samples = zip(*batches, strict=True)
    large = [(torch.cat(inputs), [sample for batch in samples for sample in batch])]
    assert_close(of_two['upernet', False, 2], gradients(build('upernet', False), large))
