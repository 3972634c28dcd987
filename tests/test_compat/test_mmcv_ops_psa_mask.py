"""PSAMask, through mmcv, against its definition."""

import itertools

import pytest
import torch


@pytest.fixture
def psa_mask(plain_ops):
    return plain_ops('psa_mask').PSAMask


def reference(x, psa_type, mask_size):
    """One pair of pixels at a time: q gives to, or takes from, the map of p."""
    batch, _, height, width = x.shape
    y = x.new_zeros(batch, height * width, height * width)
    maps = x.unflatten(1, mask_size)
    pixels = list(itertools.product(range(height), range(width)))
    for (q, (row, column)), (p, (i, j)) in itertools.product(enumerate(pixels), repeat=2):
        at = row - i + (mask_size[0] - 1) // 2, column - j + (mask_size[1] - 1) // 2
        if 0 <= at[0] < mask_size[0] and 0 <= at[1] < mask_size[1]:
            index = (q, p) if psa_type == 'collect' else (p, q)
            y[(slice(None), *index)] = maps[:, at[0], at[1], i, j]
    return y.view(batch, -1, height, width)


@pytest.mark.parametrize('psa_type', ['collect', 'distribute'])
@pytest.mark.parametrize('size, mask_size', [((3, 4), (5, 7)), ((5, 3), (2, 4)), ((2, 2), (5, 1))])
def test_equals_definition_with_gradient(psa_mask, size, mask_size, psa_type):
    x = torch.randn(2, mask_size[0] * mask_size[1], *size).requires_grad_()
    y, expected = psa_mask(psa_type, mask_size)(x), reference(x, psa_type, mask_size)
    assert torch.equal(y, expected)
    weight = torch.randn_like(y)
    grads = [torch.autograd.grad(out, x, weight)[0] for out in (y, expected)]
    assert torch.equal(*grads)


@pytest.mark.parametrize('psa_type', ['collect', 'distribute'])
def test_gradcheck(psa_mask, psa_type):
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(psa_mask(psa_type, (2, 3)), x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_no_images_and_infinite_weights(psa_mask, dtype):
    x = torch.randn(2, 9, 4, 5).to(dtype).requires_grad_()
    y = psa_mask('collect', (3, 3))(x)
    assert torch.equal(y, reference(x, 'collect', (3, 3)))
    assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype
    assert psa_mask('collect', (3, 3))(x[:0]).shape == (0, 20, 4, 5)
    y = psa_mask('collect', (3, 3))(torch.full_like(x, torch.inf))
    assert (y == torch.inf).any() and (y == 0).any() and not y.isnan().any()
