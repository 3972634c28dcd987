"""The neck that computes a feature pyramid from one map."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmfocalnet import FocalNet
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import ARCHS, SimpleFeaturePyramid

ROOT = Path(__file__).resolve().parents[2]
ISO = [name for name in ARCHS if name.endswith('_iso')]


def small(**kwargs):
    return SimpleFeaturePyramid(**{**dict(in_channels=[16], out_channels=12), **kwargs})


@pytest.mark.parametrize('name', ISO)
@pytest.mark.parametrize('size', [(800, 1216), (96, 160), (67, 93), (1, 1)])
def test_levels_of_every_monolithic_arch(name, size):
    with torch.device('meta'):
        net = FocalNet(name)
        neck = SimpleFeaturePyramid(net.num_features)
        outs = neck(net(torch.empty(2, 3, *size, device='meta')))
    # The backbone pads to a multiple of 16, and the neck where it halves a map.
    padded = [-(-side // 16) * 16 for side in size]
    for out, stride in zip(outs, (4, 8, 16, 32, 64), strict=True):
        assert out.shape == (2, 256, *(-(-side // stride) for side in padded))


@pytest.mark.parametrize('size', [(800, 1216), (64, 32), (352, 992)])
def test_levels_have_the_sizes_of_an_fpn(size):
    """For image sizes that are multiples of 32, as detectors pad them."""
    from mmdet.models import FPN

    with torch.device('meta'):
        outs = small()(FocalNet('tiny_iso', embed_dim=16)(torch.empty(1, 3, *size, device='meta')))
        maps = FocalNet('tiny_lrf')(torch.empty(1, 3, *size, device='meta'))
        expected = FPN([96, 192, 384, 768], 12, num_outs=5)(maps)
    assert [out.shape for out in outs] == [out.shape for out in expected]


@pytest.mark.parametrize('place', [(0, 0), (2, 3), (4, 6)])
def test_a_location_depends_on_the_pixels_of_its_stride(place):
    """A change at one location of a map changes only the corresponding locations of all levels."""
    neck = small(num_outs=6).eval()
    for level in neck.levels:  # the convolutions after rescaling have larger windows
        del level[-4:]
    x = torch.randn(1, 16, 5, 7)
    spot = x.clone()
    spot[..., place[0], place[1]] += 100  # the maximum of each pooling window
    for scale, a, b in zip((4, 2, 1, 0.5, 0.25, 0.125), neck((x,)), neck((spot,)), strict=True):
        changed = (a != b).any(dim=1)[0].nonzero().tolist()
        if scale >= 0.5:
            reach = range(max(1, int(scale)))
            expected = [
                [int(place[0] * scale) + i, int(place[1] * scale) + j] for i in reach for j in reach
            ]
        else:  # every second location of the previous level
            step = int(1 / scale)
            kept = all(side // 2 % (step // 2) == 0 for side in place)
            expected = [[side // step for side in place]] if kept else []
        assert changed == expected, scale


@pytest.mark.parametrize('size', [(5, 7), (1, 1), (4, 6)])
def test_gradients_of_all_parameters(size):
    neck = small()
    x = torch.randn(2, 16, *size, requires_grad=True)
    outs = neck((x,))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [name for name, p in neck.named_parameters() if not p.grad.any()] == []
    assert x.grad.any() and all(p.grad.isfinite().all() for p in neck.parameters())


@pytest.mark.parametrize('name', ISO)
def test_trains_with_every_monolithic_arch(name):
    net = FocalNet(name, embed_dim=16, depths=[2], layerscale_value=0.5, drop_path_rate=0.0)
    net.init_weights()
    model = nn.Sequential(net, small())
    outs = model(torch.randn(2, 3, 67, 93))
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert [key for key, p in model.named_parameters() if not p.grad.any()] == []


def test_layers_are_those_of_vitdet():
    neck = small(in_channels=[8])
    kinds = [[type(layer).__name__ for layer in level[:-4]] for level in neck.levels]
    up = ['ConvTranspose2d']
    assert kinds == [[*up, 'LayerNorm2d', 'GELU', *up], up, [], ['MaxPool2d']]
    assert [level[-4].in_channels for level in neck.levels] == [2, 4, 8, 8]
    for level in neck.levels:
        one, norm, three, last = level[-4:]
        assert (one.kernel_size, three.kernel_size) == ((1, 1), (3, 3))
        assert one.bias is None is three.bias
        assert isinstance(norm, nn.LayerNorm) and isinstance(last, nn.LayerNorm)


def test_norms_are_over_channels():
    (level, *_) = small()((torch.randn(1, 16, 3, 5) * 9 + 4,))
    torch.testing.assert_close(level.mean(1), torch.zeros(1, 12, 20), rtol=0, atol=1e-5)
    torch.testing.assert_close(level.std(1, correction=0), torch.ones(1, 12, 20), rtol=0, atol=1e-2)


@pytest.mark.parametrize(('num_outs', 'smallest'), [(4, 2), (5, 1), (7, 1)])
def test_number_of_levels(num_outs, smallest):
    outs = small(num_outs=num_outs)((torch.randn(1, 16, 4, 4),))
    assert len(outs) == num_outs
    assert outs[-1].shape[2:] == (smallest, smallest)


def test_registered_in_the_root_registry():
    import mmdet.registry
    import mmseg.registry

    cfg = dict(type='SimpleFeaturePyramid', in_channels=[16])
    for registry in (MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS):
        assert isinstance(registry.build(cfg), SimpleFeaturePyramid)


def test_in_the_config_of_a_segmentor():
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    cfg = Config.fromfile(ROOT / 'configs/demo/upernet.py').model
    cfg.backbone = dict(type='FocalNet', arch='tiny_iso', embed_dim=16, depths=[1])
    cfg.neck = dict(type='SimpleFeaturePyramid', in_channels=[16], out_channels=12, num_outs=4)
    cfg.decode_head.in_channels = [12] * 4
    cfg.auxiliary_head.in_channels = 12
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, cfg.decode_head.num_classes, 16, 24)


def test_more_than_one_map_raises():
    with pytest.raises(ConfigError, match='out_indices'):
        small()((torch.randn(1, 16, 2, 2),) * 2)
