"""Deformable convolutions, through mmcv, against their definition."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from stacks import FLOAT16


@pytest.fixture
def convs(plain_ops):
    """mmcv's deform_conv2d and modulated_deform_conv2d with keyword arguments."""
    v1 = plain_ops('deform_conv').deform_conv2d
    v2 = plain_ops('modulated_deform_conv').modulated_deform_conv2d

    def deform_conv(x, offset, weight, stride=1, padding=0, dilation=1, groups=1, parts=1):
        return v1(x, offset, weight, stride, padding, dilation, groups, parts)

    def modulated(
        x, offset, mask, weight, bias, stride=1, padding=0, dilation=1, groups=1, parts=1
    ):
        return v2(x, offset, mask, weight, bias, stride, padding, dilation, groups, parts)

    return SimpleNamespace(v1=deform_conv, v2=modulated)


def bilinear(x, row, column):
    """A sum (C,) over all pixels of x (C, H, W) that are within one pixel."""
    value = x.new_zeros(len(x))
    top, left = (int(at.detach().floor()) for at in (row, column))
    for i, j in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
            value = value + x[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def reference(x, offset, mask, weight, bias, stride, padding, dilation, groups, parts):
    """One output pixel, position of the kernel and part of the channels at a time."""
    kernel, size = weight.shape[2:], offset.shape[2:]
    pixels = []
    for image, row, column in itertools.product(*map(range, (len(x), *size))):
        samples = []
        for part, i, j in itertools.product(*map(range, (parts, *kernel))):
            k = (part * kernel[0] + i) * kernel[1] + j
            y, x_at = offset[image, 2 * k : 2 * k + 2, row, column]
            y = y + row * stride[0] - padding[0] + i * dilation[0]
            x_at = x_at + column * stride[1] - padding[1] + j * dilation[1]
            sample = bilinear(x[image].chunk(parts)[part], y, x_at)
            samples.append(sample * mask[image, k, row, column])
        samples = torch.stack(samples).view(parts, *kernel, -1).permute(0, 3, 1, 2).flatten(0, 1)
        pixel = [
            (w * part).flatten(1).sum(1)
            for w, part in zip(weight.chunk(groups), samples.chunk(groups), strict=True)
        ]
        pixels.append(torch.cat(pixel) + (0 if bias is None else bias))
    return torch.stack(pixels).view(len(x), *size, -1).permute(0, 3, 1, 2)


def random_inputs(size, kernel, stride, padding, dilation, groups, parts, images=2, scale=1.5):
    """Leaves x, offset, mask, weight and bias in double precision, of 6 input channels."""
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    points = parts * kernel[0] * kernel[1]
    inputs = (
        torch.randn(images, 6, *size, dtype=torch.float64),
        torch.randn(images, 2 * points, *out, dtype=torch.float64) * scale,
        torch.rand(images, points, *out, dtype=torch.float64),
        torch.randn(2 * groups, 6 // groups, *kernel, dtype=torch.float64),
        torch.randn(2 * groups, dtype=torch.float64),
    )
    return [tensor.requires_grad_() for tensor in inputs]


def assert_equal_with_grads(y, expected, leaves, **tolerance):
    torch.testing.assert_close(y, expected, **tolerance)
    grad = torch.randn_like(y)
    actual, expected = (torch.autograd.grad(out, leaves, grad) for out in (y, expected))
    for value, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, right, **tolerance)


CASES = [  # kernel, stride, padding, dilation, groups, parts
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    ((2, 3), (2, 1), (0, 2), (1, 2), 2, 1),
    ((3, 1), (1, 2), (2, 0), (2, 1), 1, 3),
    ((1, 2), (1, 1), (0, 1), (1, 1), 2, 3),
    ((2, 2), (3, 2), (1, 1), (1, 1), 3, 2),
]


@pytest.mark.parametrize('case', CASES)
def test_equals_definition_with_gradients(convs, case):
    x, offset, mask, weight, bias = random_inputs((4, 5), *case)
    y = convs.v2(x, offset, mask, weight, bias, *case[1:])
    expected = reference(x, offset, mask, weight, bias, *case[1:])
    assert_equal_with_grads(y, expected, [x, offset, mask, weight, bias])
    y = convs.v1(x, offset, weight, *case[1:])
    expected = reference(x, offset, torch.ones_like(mask), weight, None, *case[1:])
    assert_equal_with_grads(y, expected, [x, offset, weight])


@pytest.mark.parametrize('case', CASES)
def test_without_offsets_equals_convolution(convs, case):
    x, offset, mask, weight, bias = random_inputs((9, 7), *case, scale=0)
    expected = F.conv2d(x, weight, bias, *case[1:5])
    ones = torch.ones_like(mask)
    assert_equal_with_grads(
        convs.v2(x, offset, ones, weight, bias, *case[1:]), expected, [x, weight, bias]
    )
    assert_equal_with_grads(
        convs.v1(x, offset, weight, *case[1:]), F.conv2d(x, weight, None, *case[1:5]), [x, weight]
    )


def test_gradcheck(convs):
    case = ((1, 2), (1, 2), (1, 1), (1, 1), 2, 3)
    inputs = random_inputs((2, 4), *case, images=1)
    check = torch.autograd.gradcheck
    assert check(lambda *args: convs.v2(*args, *case[1:]), inputs)
    x, offset, _, weight, _ = inputs
    assert check(lambda *args: convs.v1(*args, *case[1:]), [x, offset, weight])


def test_positions_at_and_beyond_the_border(convs):
    # A kernel of one pixel shows x at row y and column 1.
    x = torch.tensor([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]]).view(1, 1, 3, 3)
    weight = torch.ones(1, 1, 1, 1)
    nan, inf = float('nan'), float('inf')
    rows = [-5, -1.25, -1, -0.75, 0, 0.5, 1, 2, 2.75, 3, 3.5, 1e9, -inf, inf, nan]
    value = [0, 0, 0, 0.25, 1, 1.5, 2, 4, 1, 0, 0, 0, 0, 0, 0]
    slope = [0, 0, 0, 1, 1, 1, 2, -4, -4, 0, 0, 0, 0, 0, 0]
    for at, expected, derivative in zip(rows, value, slope, strict=True):
        offset = torch.zeros(1, 2, 3, 3)
        offset[0, 0] = at - torch.arange(3.0)[:, None]
        y = convs.v1(x, offset.requires_grad_(), weight)
        assert torch.equal(y, torch.full_like(y, expected)), at
        grad = torch.autograd.grad(y.sum(), offset)[0]
        assert torch.equal(grad[0, 0], torch.full((3, 3), float(derivative))), at


def test_modulation_scales_samples(convs):
    case = CASES[0]
    x, offset, mask, weight, _ = random_inputs((6, 7), *case)
    once, twice = (convs.v2(x, offset, m, weight, None, *case[1:]) for m in (mask, 2 * mask))
    torch.testing.assert_close(twice, 2 * once)
    assert convs.v2(x, offset, 0 * mask, weight, None, *case[1:]).abs().max() == 0


@pytest.mark.parametrize('dtype', [FLOAT16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_half_precision_computes_in_single(convs, dtype, autocast):
    case = CASES[1]
    half = [t.detach().to(dtype).requires_grad_() for t in random_inputs((6, 7), *case)]
    single = [t.detach().float().requires_grad_() for t in half]
    outputs = []
    for x, offset, mask, weight, _ in (half, single):
        with torch.autocast('cpu', dtype, enabled=autocast):
            y1 = convs.v1(x, offset, weight, *case[1:])
            y2 = convs.v2(x, offset, mask, weight, None, *case[1:])
        outputs.append((y1, y2))
    for y, expected, leaves in zip(*outputs, ((0, 1, 3), (0, 1, 2, 3)), strict=True):
        assert y.dtype == dtype and torch.equal(y, expected.to(dtype))
        grads = torch.autograd.grad(y.sum(), [half[i] for i in leaves])
        right = torch.autograd.grad(expected.sum(), [single[i] for i in leaves])
        for value, exact in zip(grads, right, strict=True):
            assert value.dtype == dtype and torch.equal(value, exact.to(dtype))


def test_a_half_precision_weight_gradient_sums_images_in_single(convs):
    # 2048 + 1 is 2048 in float16.
    x = torch.tensor([2048.0, *[1.0] * 64]).half().view(65, 1, 1, 1)
    offset, weight = torch.zeros(65, 2, 1, 1).half(), torch.ones(1, 1, 1, 1).half()
    y = convs.v2(x, offset, torch.ones_like(x), weight.requires_grad_(), None)
    assert torch.autograd.grad(y.sum(), weight)[0].item() == 2048 + 64


def test_channels_last(convs):
    case = CASES[3]
    x, offset, mask, weight, bias = random_inputs((6, 7), *case)
    strided = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    outputs = [convs.v2(t, offset, mask, weight, bias, *case[1:]) for t in (x, strided)]
    torch.testing.assert_close(*outputs)
    grads = (torch.autograd.grad(y.sum(), t)[0] for y, t in zip(outputs, (x, strided), strict=True))
    torch.testing.assert_close(*grads)


def test_v2_uses_the_first_elements_of_larger_offsets(convs):
    # DyHead passes the offsets of one level of the pyramid with the features of the next.
    x, _, _, weight, _ = random_inputs((3, 4), *CASES[0])
    offset = torch.randn(2, 18, 6, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 9, 6, 8, dtype=torch.float64, requires_grad=True)
    first = [t.flatten(1)[:, : t[0].numel() // 4].view(2, -1, 3, 4) for t in (offset, mask)]
    y = convs.v2(x, offset, mask, weight, None, padding=1)
    expected = convs.v2(x, *first, weight, None, padding=1)
    assert_equal_with_grads(y, expected, [x, offset, mask, weight])
    with pytest.raises(ValueError, match=r'\(6, 8\).*\(3, 4\)'):
        convs.v1(x, offset, weight, padding=1)
