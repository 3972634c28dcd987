"""Matrix products through MKL and oneDNN, compared with float64."""

import pytest
import torch

from mmfocalnet.ops import matrix_products


@pytest.fixture(params=['MKL', 'oneDNN', 'oneDNN without AVX-512'], autouse=True)
def library(request, monkeypatch):
    if request.param != 'MKL' and not matrix_products._has_onednn():
        pytest.skip('PyTorch has no oneDNN here')
    monkeypatch.setattr(matrix_products, '_has_onednn', lambda: request.param != 'MKL')
    monkeypatch.setattr(matrix_products, '_has_avx512', lambda: request.param == 'oneDNN')
    return request.param


def make(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def check(got, expected):
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6 * expected.abs().max())
    assert got.is_contiguous()


# Few rows, around the minimum for oneDNN, one column on either side, more than a chunk.
SIZES = [(1, 5, 7), (127, 3, 4), (128, 3, 4), (200, 1, 6), (200, 6, 1), (300, 40, 24)]
sizes = pytest.mark.parametrize(('rows', 'width', 'wanted'), SIZES)


@sizes
@pytest.mark.parametrize('bias', [True, False])
def test_linear(rows, width, wanted, bias):
    x, weight, b = make(rows, width), make(wanted, width), make(wanted) if bias else None
    expected = x.double() @ weight.double().t() + (b.double() if bias else 0)
    check(matrix_products.linear(x, weight, b), expected)
    # Transposed weights, as in backward, and transposed rows.
    check(matrix_products.linear(x, weight.t().contiguous().t(), b), expected)
    check(matrix_products.linear(x.t().contiguous().t(), weight, b), expected)


@sizes
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('bias', [True, False])
def test_linear_transposed(rows, width, wanted, batch, bias):
    x, weight, b = make(batch, rows, width), make(wanted, width), make(wanted) if bias else None
    expected = (x.double() @ weight.double().t() + (b.double() if bias else 0)).transpose(1, 2)
    check(matrix_products.linear_transposed(x, weight, b), expected)


@sizes
@pytest.mark.parametrize('batch', [1, 2])
def test_linear_of_planes(rows, width, wanted, batch, monkeypatch):
    monkeypatch.setattr(matrix_products, '_CHUNK', 1)  # 128 pixels at a time.
    planes, weight, bias = make(batch, width, rows), make(wanted, width), make(wanted)
    expected = planes.double().transpose(1, 2) @ weight.double().t() + bias.double()
    check(matrix_products.linear_of_planes(planes, weight, bias), expected)


@sizes
def test_weight_grad(rows, width, wanted):
    x, grad = make(rows, width), make(rows, wanted)
    check(matrix_products.weight_grad(x, grad), grad.double().t() @ x.double())
    check(matrix_products.weight_grad(x.t().contiguous().t(), grad), grad.double().t() @ x.double())
    total = make(wanted, width)
    expected = total.double() + grad.double().t() @ x.double()
    assert matrix_products.weight_grad(x, grad, total) is total
    check(total, expected)


def test_other_types_use_pytorch():
    x, weight = make(200, 3).double(), make(4, 3).double()
    torch.testing.assert_close(
        matrix_products.linear(x, weight), x @ weight.t(), rtol=0, atol=1e-14
    )


def test_the_selected_library_computes(library, monkeypatch):
    calls = []
    convolve = torch.mkldnn_convolution
    monkeypatch.setattr(torch, 'mkldnn_convolution', lambda *a: calls.append(1) or convolve(*a))
    matrix_products.linear(make(200, 3), make(4, 3))
    assert bool(calls) == (library != 'MKL')


def test_convolutions_are_avoided_where_they_are_slow(library, monkeypatch):
    """For wide rows, also transposed, and for planes without AVX-512."""
    calls, convolve = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, 'mkldnn_convolution', lambda *a: calls.append(1) or convolve(*a))
    matrix_products.linear(make(200, 2049), make(4, 2049))
    matrix_products.linear_transposed(make(1, 200, 2049), make(4, 2049))
    assert not calls
    matrix_products.linear_of_planes(make(1, 3, 200), make(4, 3), make(4))
    assert bool(calls) == (library == 'oneDNN')


@pytest.mark.parametrize('with_bias', [True, False])
def test_wide_rows(with_bias):
    x, weight = make(150, 4000)[:, :3000], make(3000, 5)
    bias = make(10)[::2] if with_bias else None
    expected = x.double() @ weight.double() + (bias.double() if with_bias else 0)
    out = matrix_products.linear(x, weight.t(), bias)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-6 * expected.abs().max())
    assert out.is_contiguous()
