"""CARAFE, through mmcv, against its definition."""

import itertools

import pytest
import torch
from stacks import FLOAT16

from mmfocalnet.compat.mmcv_ops import carafe as our_carafe


@pytest.fixture(params=['carafe', 'carafe_naive'])
def carafe(request, monkeypatch, plain_ops):
    module = plain_ops('carafe')
    if request.param == 'carafe_naive':
        monkeypatch.setattr(torch.Tensor, 'is_cuda', True)  # mmcv asserts it
    return getattr(module, request.param)


def reference(x, masks, kernel, groups, scale):
    """One output pixel, channel and neighbor at a time."""
    batch, channels, height, width = x.shape
    y = []
    for b, c, p, q in itertools.product(*map(range, (batch, channels, *masks.shape[2:]))):
        value = 0
        for i, j in itertools.product(range(kernel), repeat=2):
            row, column = p // scale + i - kernel // 2, q // scale + j - kernel // 2
            if 0 <= row < height and 0 <= column < width:
                mask = (c // (channels // groups) * kernel + i) * kernel + j
                value = value + x[b, c, row, column] * masks[b, mask, p, q]
        y.append(value)
    return torch.stack(y).view(batch, channels, *masks.shape[2:])


def random_inputs(kernel, groups, scale, batch=2, size=(2, 3), dtype=torch.float64):
    x = torch.randn(batch, 4, *size, dtype=dtype)
    masks = torch.rand(batch, groups * kernel**2, *(n * scale for n in size), dtype=dtype)
    return x.requires_grad_(), masks.requires_grad_()


@pytest.mark.parametrize('case', [(3, 1, 2), (1, 2, 3), (5, 4, 1), (3, 2, 2)])
def test_equals_definition_with_gradients(carafe, monkeypatch, case):
    monkeypatch.setattr(our_carafe, '_CHUNK_ELEMENTS', 1)  # one image per chunk
    x, masks = random_inputs(*case)
    y, expected = carafe(x, masks, *case), reference(x, masks, *case)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    grads = [torch.autograd.grad(out, (x, masks), weight) for out in (y, expected)]
    torch.testing.assert_close(*grads)


def test_gradcheck(carafe):
    inputs = random_inputs(3, 2, 2, batch=1, size=(2, 2))
    assert torch.autograd.gradcheck(lambda *args: carafe(*args, 3, 2, 2), inputs)


def test_channels_last(carafe):
    x, masks = random_inputs(3, 2, 2)
    y = carafe(x, masks, 3, 2, 2)
    strided = (t.contiguous(memory_format=torch.channels_last) for t in (x, masks))
    torch.testing.assert_close(carafe(*strided, 3, 2, 2), y)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [FLOAT16, torch.bfloat16])
def test_half_precision_computes_in_single(carafe, dtype, autocast):
    half = [t.detach().to(dtype).requires_grad_() for t in random_inputs(5, 2, 2)]
    single = [t.detach().float().requires_grad_() for t in half]
    with torch.autocast('cpu', dtype, enabled=autocast):
        y, expected = (carafe(*inputs, 5, 2, 2) for inputs in (half, single))
    assert torch.equal(y, expected.to(dtype))
    grads, right = (torch.autograd.grad(o.sum(), i) for o, i in ((y, half), (expected, single)))
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(grads, right, strict=True))


def test_no_images(carafe):
    x, masks = random_inputs(3, 1, 2, batch=0)
    y = carafe(x, masks, 3, 1, 2)
    assert y.shape == (0, 4, 4, 6)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
