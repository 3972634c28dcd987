"""deform_roi_pool, through mmcv, against roi_align and derivatives."""

import pytest
import torch

from mmfocalnet.compat.mmcv_ops import roi_align as our_roi_align

BINS, SCALE = (3, 2), 0.25


@pytest.fixture
def pool(plain_ops):
    return plain_ops('deform_roi_pool').deform_roi_pool


@pytest.fixture
def roi_align(plain_ops):
    return plain_ops('roi_align').roi_align


def random_inputs(count=12, dtype=torch.float64):
    """Features, RoIs that go beyond the map, and offsets."""
    corner = torch.rand(count, 2, dtype=dtype) * 40 - 8
    image = torch.randint(2, (count, 1)).to(dtype)
    rois = torch.cat([image, corner, corner + torch.rand(count, 2, dtype=dtype) * 40], dim=1)
    x = torch.randn(2, 3, 9, 11, dtype=dtype, requires_grad=True)
    return x, rois, torch.randn(count, 2, *BINS, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize('ratio', [0, 2])
def test_without_offsets_equals_roi_align(pool, roi_align, monkeypatch, ratio):
    monkeypatch.setattr(our_roi_align, '_CHUNK_ELEMENTS', 200)
    x, rois, offset = random_inputs()
    expected = roi_align(x, rois, BINS, SCALE, ratio)
    for none in (None, torch.zeros_like(offset)):
        y = pool(x, rois, none, BINS, SCALE, ratio)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in (y, expected))
        )


@pytest.mark.parametrize('ratio', [0, 3])
def test_each_bin_equals_roi_align_of_a_moved_roi(pool, roi_align, ratio):
    x, rois, offset = random_inputs()
    y = pool(x, rois, offset, BINS, SCALE, ratio, 0.2)
    size = rois[:, 3:] - rois[:, 1:3]
    for i in range(BINS[0]):
        for j in range(BINS[1]):
            shift = 0.2 * offset[:, :, i, j].detach() * size
            moved = torch.cat([rois[:, :1], rois[:, 1:3] + shift, rois[:, 3:] + shift], dim=1)
            expected = roi_align(x, moved, BINS, SCALE, ratio)
            torch.testing.assert_close(y[:, :, i, j], expected[:, :, i, j])


@pytest.mark.parametrize('ratio', [0, 2])
def test_gradcheck(pool, monkeypatch, ratio):
    monkeypatch.setattr(our_roi_align, '_CHUNK_ELEMENTS', 200)
    _, rois, offset = random_inputs(count=4)
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    function = lambda x, offset: pool(x, rois, offset, BINS, SCALE, ratio)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, offset))


@pytest.mark.parametrize('name', ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'])
def test_modules_train_their_offsets(plain_ops, name):
    module = getattr(plain_ops('deform_roi_pool'), name)(BINS, 3, 8, SCALE)
    x, rois, _ = random_inputs(dtype=torch.float32)
    module(x, rois).square().sum().backward()
    assert module.offset_fc[-1].bias.grad.abs().max() > 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_single(pool, dtype):
    half = [t.detach().to(dtype) for t in random_inputs()]
    single = [t.float() for t in half]
    for x, _, offset in (half, single):
        x.requires_grad_(), offset.requires_grad_()
    y, expected = (pool(*inputs, BINS, SCALE, 2) for inputs in (half, single))
    assert torch.equal(y, expected.to(dtype))
    for i in (0, 2):
        grads = torch.autograd.grad(y.sum(), half[i], retain_graph=True)
        right = torch.autograd.grad(expected.sum(), single[i], retain_graph=True)
        assert torch.equal(grads[0], right[0].to(dtype))


def test_degenerate_rois_and_no_rois(pool):
    x, rois, offset = random_inputs(count=3)
    rois[0, 3:] = rois[0, 1:3]  # no area
    rois[1, 3:] = rois[1, 1:3] - 4  # negative size
    rois[2, 1] = float('nan')
    for part in (3, 0):
        y = pool(x, rois[:part], offset[:part], BINS, SCALE)
        assert y.shape == (part, 3, *BINS) and (y == 0).all()
        assert (torch.autograd.grad(y.sum(), x)[0] == 0).all()
