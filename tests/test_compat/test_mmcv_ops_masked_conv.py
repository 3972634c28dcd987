"""MaskedConv2d, through mmcv, against the convolution of all pixels."""

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.filterwarnings('ignore:This overload of addmm is deprecated')  # mmcv's


@pytest.fixture
def masked_conv(plain_ops):
    return plain_ops('masked_conv')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kernel', [(3, 3), (1, 1), (1, 5)])
def test_equals_convolution_at_the_mask(masked_conv, kernel, dtype):
    conv = masked_conv.MaskedConv2d(4, 6, kernel, padding=tuple(k // 2 for k in kernel)).to(dtype)
    x, mask = torch.randn(1, 4, 7, 5, dtype=dtype), torch.rand(1, 7, 5) < 0.4
    with torch.no_grad():
        expected = F.conv2d(x, conv.weight, conv.bias, padding=conv.padding) * mask[:, None]
        torch.testing.assert_close(conv(x, mask.float()), expected)
        assert conv(x, torch.zeros(1, 7, 5)).abs().max() == 0
        torch.testing.assert_close(conv(x), conv(x, torch.ones(1, 7, 5)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kernel, padding', [((3, 2), (1, 1)), ((2, 4), (0, 1)), ((1, 1), (2, 0))])
def test_columns_equal_unfold(masked_conv, kernel, padding, dtype):
    x = torch.randn(1, 3, 6, 7).to(dtype)
    columns = F.unfold(x.float(), kernel, padding=padding)[0]
    sizes = (n + 2 * p - k + 1 for n, k, p in zip((6, 7), kernel, padding, strict=True))
    columns = columns.view(len(columns), *sizes)
    rows, cols = (torch.rand(columns.shape[1:]) < 0.5).nonzero().unbind(1)
    inside = (rows < 6) & (cols < 7)
    rows, cols = rows[inside], cols[inside]
    col = x.new_zeros(len(columns), len(rows))
    options = dict(kernel_h=kernel[0], kernel_w=kernel[1], pad_h=padding[0], pad_w=padding[1])
    masked_conv.ext_module.masked_im2col_forward(x, rows, cols, col, **options)
    assert torch.equal(col, columns[:, rows, cols].to(dtype))
