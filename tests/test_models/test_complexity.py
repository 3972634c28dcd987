"""Parameters and FLOPs of classifiers, compared with the formula of the published code."""

import functools

import pytest
import torch
from torch import nn

from mmfocalnet import FocalNet
from mmfocalnet.models import ARCHS
from mmfocalnet.models.complexity import classifier_flops, classifier_parameters


@functools.cache
def meta(*args, **kwargs):
    with torch.device('meta'):
        return FocalNet(*args, **kwargs)


def by_formula(dim, depths, levels, window, patch, size):
    """Multiply-accumulates per stage; kernels of embeddings have the size of their stride."""
    side, before, total = size // patch, 3, 0
    for stage, depth in enumerate(depths):
        n, c = side**2, dim * 2**stage
        total += n * c * before * (patch if stage == 0 else 2) ** 2 + n * c  # embedding, its norm
        f = c * (2 * c + levels + 1)
        contexts = sum(((window + 2 * level) ** 2 + 1) * c for level in range(levels)) + c
        h, proj, mlp, norms = c * (c + 1), c * c, 8 * c * c, 2 * c
        total += depth * n * (f + contexts + h + proj + mlp + norms)
        before, side = c, side // 2
    return total + n * c + 1000 * c  # average and head


@pytest.mark.parametrize(
    ('arch', 'size', 'settings'),
    [
        # The formula does not include the norms in the modulation of the huge models.
        *((arch, 224, {}) for arch in ARCHS if 'huge' not in arch),
        ('tiny_srf', 224, dict(use_conv_embed=True)),
        ('large_fl3', 384, dict(use_conv_embed=False)),
        ('tiny_iso', 384, {}),
    ],
)
def test_flops_of_every_arch(arch, size, settings):
    s = ARCHS[arch]
    expected = by_formula(
        s['embed_dim'],
        s['depths'],
        s['focal_levels'],
        s['focal_windows'],
        s.get('patch_size', 4),
        size,
    )
    assert classifier_flops(meta(arch, **settings), size) == expected


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_of_every_arch(arch):
    net = meta(arch, out_indices=(len(ARCHS[arch]['depths']) - 1,))
    head = nn.Linear(net.num_features[-1], 1000)
    expected = sum(p.numel() for p in [*net.parameters(), *head.parameters()])
    assert classifier_parameters(net) == expected == classifier_parameters(meta(arch))


def test_counting_does_not_change_the_network():
    net = FocalNet(embed_dim=8, depths=(1, 1), focal_levels=1, focal_windows=3)
    x = torch.randn(1, 3, 16, 16)
    before = net.eval()(x)
    assert classifier_flops(net, 32) == classifier_flops(net, 32)
    assert not any(module._forward_hooks for module in net.modules())
    for out, expected in zip(net(x), before, strict=True):
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_outputs_of_other_stages_change_no_count():
    counts = {classifier_flops(meta('tiny_srf', out_indices=i)) for i in (None, (3,), (0, 3))}
    assert len(counts) == 1
