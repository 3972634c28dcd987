"""The ops that are called on GPUs only, run on the CPU: through mmcv, and through models whose
tensors pretend to be on a GPU.
"""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from stacks import ops_in_pytorch

from mmfocalnet.compat import ensure_mmcv_ops
from mmfocalnet.compat.mmcv_ops import OPS, focal_loss, multi_scale_deform_attn

ensure_mmcv_ops()
mmcv_focal_loss = importlib.import_module('mmcv.ops.focal_loss')
mmcv_attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
mmdet_losses = importlib.import_module('mmdet.models.losses')
mmdet_testing = importlib.import_module('mmdet.testing')
SegDataSample = importlib.import_module('mmseg.structures').SegDataSample

CONFIGS = Path(__file__).parents[2] / 'configs'
FOCAL = {'sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'}
ATTENTION = {'ms_deform_attn_forward', 'ms_deform_attn_backward'}


@pytest.fixture(autouse=True)
def called(monkeypatch):
    """Let mmcv call our ops, whatever is installed; return the set of the names called."""
    called = set()

    def recorded(name, op):
        def call(*args, **kwargs):
            called.add(name)
            return op(*args, **kwargs)

        return call

    ours = {name: recorded(name, op) for name, op in OPS['pytorch'].items()}
    ours = SimpleNamespace(**ours)
    for module in (mmcv_focal_loss, mmcv_attention):
        monkeypatch.setattr(module, 'ext_module', ours)
    return called


@pytest.fixture
def pretend_cuda(monkeypatch):
    """Return a function after which mmdet, mmseg and mmcv treat every tensor as one on a GPU."""

    def _pretend_cuda():
        monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(mmcv_attention, 'IS_CUDA_AVAILABLE', True)

    return _pretend_cuda


# Sigmoid focal loss


def random_logits(rows=40, classes=7, scale=4.0, dtype=torch.float32):
    return (torch.randn(rows, classes, dtype=dtype) * scale).requires_grad_()


def random_targets(rows=40, classes=7):
    """Class indices, some of them background, and some negative, which is the same."""
    target = torch.randint(0, classes + 1, (rows,))
    target[:3] = torch.tensor([classes, -1, -100])
    return target


def reference_focal_loss(logits, target, gamma, alpha):
    """mmdet's implementation in double precision."""
    one_hot = (target[:, None] == torch.arange(logits.shape[1])).double()
    return mmdet_losses.focal_loss.py_sigmoid_focal_loss(
        logits.double(), one_hot, gamma=gamma, alpha=alpha, reduction='none'
    )


def grad(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize('alpha', [0.25, 0.6])
@pytest.mark.parametrize('gamma', [2.0, 0.5, 0.0])
def test_focal_loss_equals_reference(gamma, alpha):
    logits, target = random_logits(), random_targets()
    loss = mmcv_focal_loss.sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none')
    expected = reference_focal_loss(logits, target, gamma, alpha)
    row_grads = torch.rand_like(loss)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(
        grad((loss * row_grads).sum(), logits),
        grad((expected * row_grads).sum(), logits),
        rtol=1e-5,
        atol=1e-12,
    )


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_focal_loss_weights_rows_by_their_target(reduction):
    logits, target, weight = random_logits(), random_targets(), torch.rand(7)
    module = mmcv_focal_loss.SigmoidFocalLoss(2.0, 0.25, weight, reduction)
    loss = module(logits, target)
    # Background, last, has weight 1.
    rows = torch.tensor([*weight.tolist(), 1.0])[target.where(target >= 0, 7)]
    expected = (reference_focal_loss(logits, target, 2.0, 0.25) * rows[:, None]).sum()
    if reduction == 'mean':
        expected = expected / len(target)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad(loss, logits), grad(expected, logits), rtol=1e-5, atol=1e-9)


def test_focal_loss_of_large_logits_is_exact():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    wrong, right = (
        mmcv_focal_loss.sigmoid_focal_loss(logits, torch.tensor([t]), 2.0, 0.25, None, 'none')
        for t in (1, 0)
    )
    torch.testing.assert_close(wrong, torch.tensor([[0.75 * 200, 0.25 * 200]]))
    torch.testing.assert_close(grad(wrong.sum(), logits), torch.tensor([[0.75, -0.25]]))
    assert (right == 0).all() and (grad(right.sum(), logits) == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_focal_loss_computes_half_precision_in_single(dtype):
    logits, target, weight = random_logits(scale=2.0).detach(), random_targets(), torch.rand(7)
    half = logits.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    weight = weight.to(dtype)
    loss = mmcv_focal_loss.sigmoid_focal_loss(half, target, 2.0, 0.25, weight, 'none')
    expected = mmcv_focal_loss.sigmoid_focal_loss(single, target, 2.0, 0.25, weight.float(), 'none')
    assert torch.equal(loss, expected.to(dtype))
    assert torch.equal(grad(loss.sum(), half), grad(expected.sum(), single).to(dtype))


def test_focal_loss_without_rows():
    logits = torch.zeros(0, 7, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    loss = mmcv_focal_loss.sigmoid_focal_loss(logits, target, 2.0, 0.25, torch.ones(7), 'none')
    assert loss.shape == grad(loss.sum(), logits).shape == (0, 7)


def test_focal_loss_raises_on_a_target_beyond_the_classes():
    with pytest.raises(ValueError, match='9'):
        mmcv_focal_loss.sigmoid_focal_loss(torch.zeros(2, 7), torch.tensor([7, 9]))


@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_of_mmdet_is_equal_on_a_gpu(called, pretend_cuda, weighted):
    logits, target = random_logits(scale=2.0), random_targets().clamp(min=0)
    module = mmdet_losses.FocalLoss(gamma=1.5, alpha=0.4, loss_weight=2.0)
    options = dict(weight=torch.rand(40), avg_factor=13.0) if weighted else {}
    expected = module(logits, target, **options)
    expected_grad = grad(expected, logits)
    assert not called, "mmdet's Python"
    pretend_cuda()
    loss = module(logits, target, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad(loss, logits), expected_grad, rtol=1e-5, atol=1e-8)
    assert called == FOCAL


# Multi-scale deformable attention

SHAPES = torch.tensor([[6, 9], [3, 5], [1, 2]])
STARTS = torch.tensor([0, 54, 69])


def random_attention(batch=2, queries=11, dtype=torch.float32):
    """Values, locations, some of them outside of the maps, and weights; 4 heads, C=8, P=3."""
    value = torch.randn(batch, 71, 4, 8, dtype=dtype)
    locations = torch.rand(batch, queries, 4, 3, 3, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(batch, queries, 4, 9, dtype=dtype).softmax(-1).unflatten(-1, (3, 3))
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def attend(value, locations, weights):
    return mmcv_attention.MultiScaleDeformableAttnFunction.apply(
        value, SHAPES, STARTS, locations, weights, 64
    )


def hats(at, size):
    """The weight (..., size) of each pixel in a sample at that coordinate."""
    return (1 - (at[..., None] * size - 0.5 - torch.arange(size)).abs()).clamp(min=0)


def reference_attention(value, locations, weights):
    """By definition: a sample takes hat(y - i) * hat(x - j) from pixel (i, j)."""
    out = 0
    for level, (height, width) in enumerate(SHAPES.tolist()):
        start = int(STARTS[level])
        pixels = value[:, start : start + height * width].unflatten(1, (height, width))
        x, y = locations[:, :, :, level].unbind(-1)
        out = out + torch.einsum(
            'bqmp,bqmph,bqmpw,bhwmc->bqmc',
            weights[:, :, :, level], hats(y, height), hats(x, width), pixels,
        )  # fmt: skip
    return out.flatten(2)


def test_attention_equals_reference():
    inputs = random_attention()
    out, expected = attend(*inputs), reference_attention(*(x.double() for x in inputs))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    out_grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, out_grad)
    expected_grads = torch.autograd.grad(expected, inputs, out_grad.double())
    # The gradients of locations are multiplied by sizes, up to 9.
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_computes_half_precision_in_single(dtype):
    # As in mixed precision: only the values have half precision, and mmcv casts the rest.
    value, *others = random_attention()
    half = value.detach().to(dtype).requires_grad_()
    single = [x.detach().to(dtype).float().requires_grad_() for x in (half, *others)]
    out, expected = attend(half, *others), attend(*single)
    assert torch.equal(out, expected.to(dtype))
    out_grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, (half, *others), out_grad)
    expected_grads = torch.autograd.grad(expected, single, out_grad.float())
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert torch.equal(ours, theirs.to(dtype).to(ours.dtype))


@pytest.mark.parametrize('batch, queries', [(2, 0), (0, 11)])
def test_attention_of_empty_inputs(batch, queries):
    inputs = random_attention(batch, queries)
    out = attend(*inputs)
    assert out.shape == (batch, queries, 32)
    for x, x_grad in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
        assert torch.equal(x_grad, torch.zeros_like(x))


def test_attention_raises_on_maps_of_another_size():
    value, locations, weights = random_attention()
    with pytest.raises(RuntimeError, match='split'):
        attend(value[:, :70], locations, weights)


def test_attention_module_is_equal_on_a_gpu(called, pretend_cuda):
    module = mmcv_attention.MultiScaleDeformableAttention(
        32, num_heads=4, num_levels=3, num_points=3, dropout=0.0, batch_first=True
    )
    query = torch.randn(2, 71, 32, requires_grad=True)
    points = torch.rand(2, 71, 3, 2)
    learned = (query, *module.parameters())

    def outputs():
        out = module(
            query, reference_points=points, spatial_shapes=SHAPES, level_start_index=STARTS
        )
        return out, *torch.autograd.grad(out.square().sum(), learned)

    expected = outputs()
    assert not called, "mmcv's Python"
    pretend_cuda()
    torch.testing.assert_close(outputs(), expected, rtol=1e-5, atol=1e-5)
    assert called == ATTENTION


# Complete models


def test_ops_log_their_provider(monkeypatch):
    logs = []
    for module in (focal_loss, multi_scale_deform_attn):
        monkeypatch.setattr(module, 'log_ops_provider', lambda: logs.append(1))
    mmcv_focal_loss.sigmoid_focal_loss(torch.zeros(1, 7), torch.tensor([0]))
    attend(*random_attention())
    assert len(logs) == 2


def detection_batch():
    """Two images with boxes, masks and a semantic map."""
    return mmdet_testing.demo_mm_inputs(
        2, (3, 64, 64), num_classes=4, with_mask=True, with_semantic=True
    )


def segmentation_batch():
    inputs = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    samples = []
    for _ in inputs:
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(7, (1, 64, 64))))
        sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64)))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize(
    ('name', 'ops'),
    [
        ('mask_rcnn', set()),
        ('cascade_rcnn', set()),
        ('atss', FOCAL),
        pytest.param('sparse_rcnn', FOCAL, marks=ops_in_pytorch),
        ('mask2former', ATTENTION),
        ('mask2former_semantic', ATTENTION),
        ('upernet', set()),
    ],
)
def test_models_call_no_other_op_on_a_gpu(called, pretend_cuda, name, ops):
    # An op that is missing raises, also in other modules of mmcv than these two.
    cfg = Config.fromfile(CONFIGS / 'demo' / f'{name}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        batch = detection_batch() if cfg.default_scope == 'mmdet' else segmentation_batch()
        pretend_cuda()
        data = model.data_preprocessor(batch, training=True)
        loss = model.parse_losses(model(**data, mode='loss'))[0]
        loss.backward()
        assert loss.isfinite()
        model.eval()
        with torch.no_grad():
            assert len(model(**data, mode='predict')) == 2
    assert called == ops
