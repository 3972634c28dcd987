"""roi_pool, through mmcv, against its definition."""

import itertools
import math

import pytest
import torch

from mmfocalnet.compat.mmcv_ops import roi_align

BINS = (3, 2)


@pytest.fixture
def roi_pool(plain_ops):
    return plain_ops('roi_pool').roi_pool


def reference(x, rois, bins, scale):
    """One bin at a time."""
    pooled = []
    for image, x1, y1, x2, y2 in rois.tolist():
        low, high = (y1 * scale, x1 * scale), ((y2 + 1) * scale, (x2 + 1) * scale)
        for b in itertools.product(*map(range, bins)):
            window = x[int(image)]
            for axis, (start, end) in enumerate(zip(low, high, strict=True)):
                first, after = (
                    edge(start + (b[axis] + step) * (end - start) / bins[axis])
                    for step, edge in ((0, math.floor), (1, math.ceil))
                )
                first, after = (min(max(at, 0), x.shape[2 + axis]) for at in (first, after))
                window = window.narrow(1 + axis, first, max(after - first, 0))
            empty = 0 in window.shape or min(h - lo for h, lo in zip(high, low, strict=True)) <= 0
            pooled.append(x[0, :, 0, 0] * 0 if empty else window.flatten(1).amax(1))
    return torch.stack(pooled).view(len(rois), *bins, -1).permute(0, 3, 1, 2)


def random_rois(count):
    """Some beyond the map, some of negative size."""
    corner = torch.rand(count, 2, dtype=torch.float64) * 60 - 12
    size = torch.rand(count, 2, dtype=torch.float64) * 50 - 4
    image = torch.randint(2, (count, 1)).double()
    return torch.cat([image, corner, corner + size], dim=1)


@pytest.mark.parametrize('scale', [0.25, 1.0])
def test_equals_definition_with_gradient(roi_pool, monkeypatch, scale):
    monkeypatch.setattr(roi_align, '_CHUNK_ELEMENTS', 200)
    x = torch.randn(2, 3, 9, 12, dtype=torch.float64, requires_grad=True)
    rois = random_rois(40)
    y, expected = roi_pool(x, rois, BINS, scale), reference(x, rois, BINS, scale)
    assert torch.equal(y, expected)
    weight = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, weight)[0] for out in (y, expected)))


def test_gradcheck(roi_pool):
    x = torch.randperm(2 * 3 * 6 * 7).double().view(2, 3, 6, 7).requires_grad_()
    rois = random_rois(5)
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, BINS, 0.25), x)


def test_the_first_of_equal_maxima_gets_the_gradient(roi_pool):
    x = torch.tensor([[0.0, 1, 1], [1, 0, 0]]).view(1, 1, 2, 3).requires_grad_()
    y = roi_pool(x, torch.tensor([[0.0, 0, 0, 2, 1]]), (1, 1), 1.0)
    assert y.item() == 1
    assert torch.autograd.grad(y, x)[0].tolist() == [[[[0, 1, 0], [0, 0, 0]]]]


def test_degenerate_rois_and_no_rois(roi_pool):
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    nan, inf = float('nan'), float('inf')
    boxes = [[5, 5, 2, 2], [9, 9, 12, 12], [nan, 0, 2, 2], [0, 0, inf, 2], [-inf, 0, 1, 1]]
    rois = torch.tensor([[0.0, *box] for box in boxes])
    for part in (rois, rois[:0]):
        y = roi_pool(x, part, BINS, 1.0)
        assert y.shape == (len(part), 2, *BINS) and (y == 0).all()
        assert (torch.autograd.grad(y.sum(), x)[0] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(roi_pool, dtype):
    x = torch.randn(2, 3, 9, 12).to(dtype).requires_grad_()
    rois = random_rois(20).to(dtype)
    y = roi_pool(x, rois, BINS, 0.25)
    assert torch.equal(y, reference(x, rois.float(), BINS, 0.25))
    grad = torch.autograd.grad(y.sum(), x)[0]
    expected = torch.autograd.grad(roi_pool(x.float(), rois.float(), BINS, 0.25).sum(), x)[0]
    assert torch.equal(grad, expected)
