"""mmdet's DINO with our parts computes what the code bases that published DINO compute."""

import os

import published_dino
import pytest
import torch
from forked_tools import FORKS, end, ranks_of_two
from mmengine.model import MMDistributedDataParallel
from stacks import FLOAT16
from torch.testing import assert_close

from mmfocalnet.checkpoints.dino import to_mmdet
from mmfocalnet.models.dino import ReferencePointHead

CLOSE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def detector():
    """A function that builds a detector with its weights; each one once."""
    built = {}

    def make(name):
        if name not in built:
            found = published_dino.numbers(name)
            model = published_dino.build(published_dino.config(found['config'])).eval()
            model.load_state_dict(to_mmdet(published_dino.weights(found), keep_classes=True))
            built[name] = (model, found)
        return built[name]

    return make


@torch.no_grad()
def compute(model, data):
    """All intermediate results for an image."""
    seen = {}
    heads = [model.bbox_head.cls_branches, model.bbox_head.reg_branches]
    hooks = [
        heads[0][-1].register_forward_hook(lambda layer, args, out: seen.update(scores=out)),
        model.encoder.register_forward_hook(lambda layer, args, out: seen.update(memory=out)),
    ]
    inputs = model.forward_transformer(model.extract_feat(data['inputs']), data['data_samples'])
    seen['logits'], seen['boxes'] = model.bbox_head(**inputs)
    (seen['found'],) = model.bbox_head.predict(
        **inputs, batch_data_samples=data['data_samples'], rescale=True
    )
    for hook in hooks:
        hook.remove()
    return seen


def relative(value, expected):
    return value / expected.abs().max(), expected / expected.abs().max()


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_equals_the_published_code(name, detector):
    model, expected = detector(name)
    found = compute(model, published_dino.batch(model, expected))
    assert_close(*relative(found['memory'][:, ::8], expected['memory']), **CLOSE)
    best = found['scores'][0].max(-1)[0].topk(len(expected['topk']))[1]
    assert_close(best, expected['topk'], rtol=0, atol=0)
    assert_close(*relative(found['scores'][0, best], expected['enc_logits']), **CLOSE)
    assert_close(*relative(found['logits'][:, 0], expected['logits']), **CLOSE)
    assert_close(found['boxes'][:, 0], expected['boxes'], **CLOSE)

    results = found['found'][: len(expected['scores'])]
    assert_close(results.scores, expected['scores'], **CLOSE)
    assert_close(results.labels, expected['labels'], rtol=0, atol=0)
    height, width = expected['image'].shape[:2]
    # mmdet limits boxes to the image.
    limit = torch.tensor([width, height, width, height])
    inside = expected['xyxy'].clamp(min=0).minimum(limit)
    assert_close(*relative(results.bboxes, inside), **CLOSE)


@pytest.mark.parametrize('features', [32, 64, 128])
def test_reference_boxes_are_encoded_with_half_the_channels(features):
    """Whatever number of features per coordinate the decoder encodes."""
    from mmdet.models.layers import coordinate_to_encoding

    head = ReferencePointHead(128, 64, 64, 2)
    boxes = torch.rand(2, 7, 4)
    mlp = super(ReferencePointHead, head)
    expected = mlp.forward(coordinate_to_encoding(boxes, num_feats=32))
    assert torch.equal(head(coordinate_to_encoding(boxes, num_feats=features)), expected)


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_bfloat16_is_close(name, detector, monkeypatch):
    """For the same queries: a small difference of the scores changes their order."""
    model, expected = detector(name)
    data = published_dino.batch(model, expected)
    exact = compute(model, data)
    topk = torch.topk

    def select(scores, k, **settings):
        same = k == len(expected['topk'])
        return (None, expected['topk'][None]) if same else topk(scores, k, **settings)

    monkeypatch.setattr(torch, 'topk', select)
    with torch.autocast('cpu', torch.bfloat16):
        half = compute(model, data)
    for key in ('logits', 'boxes'):
        difference = (half[key].float() - exact[key]).norm()
        assert 0 < difference < 2e-2 * exact[key].norm()


def targets(count):
    boxes = torch.tensor([[10.0, 10.0, 60.0, 50.0], [30.0, 20.0, 90.0, 80.0]])[:count]
    return dict(bboxes=boxes, labels=torch.tensor([3, 7])[:count])


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, FLOAT16])
@pytest.mark.parametrize('count', [0, 1, 2])
def test_every_weight_has_a_finite_gradient(count, dtype):
    """Also without boxes, where there are no denoising queries."""
    found = published_dino.numbers(published_dino.NAMES[0])
    model = published_dino.build(published_dino.config(found['config']))
    model.load_state_dict(to_mmdet(published_dino.weights(found)))
    data = published_dino.batch(model, found, **targets(count))
    with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
        losses = model.loss(data['inputs'], data['data_samples'])
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert torch.isfinite(loss)
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_the_losses_have_the_same_names_with_and_without_boxes():
    """MMEngine reduces each loss over the processes."""
    found = published_dino.numbers(published_dino.NAMES[0])
    model = published_dino.build(published_dino.config(found['config']))
    model.init_weights()
    names = []
    for count in (0, 2):
        data = published_dino.batch(model, found, **targets(count))
        names.append(set(model.loss(data['inputs'], data['data_samples'])))
    assert names[0] == names[1]


def test_attention_samples_in_float32(detector, monkeypatch):
    from mmcv.ops import multi_scale_deform_attn

    types = set()
    sample = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch

    def record(value, shapes, locations, attention):
        types.update({value.dtype, locations.dtype})
        return sample(value, shapes, locations, attention)

    monkeypatch.setattr(multi_scale_deform_attn, 'multi_scale_deformable_attn_pytorch', record)
    model, found = detector(published_dino.NAMES[0])
    with torch.autocast('cpu', torch.bfloat16):
        compute(model, published_dino.batch(model, found))
    assert types == {torch.float32}


def train_in_one_of_two(environment):
    """Train with boxes in one process only."""
    os.environ.update(environment)
    torch.distributed.init_process_group('gloo')
    found = published_dino.numbers(published_dino.NAMES[0])
    torch.manual_seed(0)
    model = published_dino.build(published_dino.config(found['config']))
    count = 2 * torch.distributed.get_rank()
    data = published_dino.batch(model, found, **targets(count))
    wrapper = MMDistributedDataParallel(model, broadcast_buffers=False)
    for _ in range(2):  # without a gradient for each parameter, the second iteration raises
        wrapper.zero_grad()
        loss, _ = model.parse_losses(wrapper(**data, mode='loss'))
        loss.backward()
    gradient = model.dn_query_generator.label_embedding.weight.grad
    assert gradient[3].any() and torch.isfinite(gradient).all()
    # If DistributedDataParallel ends the process group, it holds the GIL while waiting for a thread
    # of gloo, which may need the GIL.
    del wrapper
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_a_process_without_boxes_trains():
    both = [FORKS.Process(target=train_in_one_of_two, args=(env,)) for env in ranks_of_two()]
    for process in both:
        process.start()
    assert [end(process) for process in both] == [0, 0]
