"""Gates, modulators, kernels and receptive fields equal the computation; the model is unchanged."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.nn import functional as F

from mmfocalnet.errors import UserError
from mmfocalnet.models import FocalNet
from mmfocalnet.visualization import (
    find_block,
    find_focalnet,
    level_kernels,
    modulation_maps,
    prepare_image,
    receptive_field,
    watch_modulation,
)


def build(**settings):
    defaults = dict(embed_dim=8, depths=(1, 2), focal_levels=2, focal_windows=(5, 3))
    net = FocalNet(**{**defaults, **settings})
    net.init_weights()
    for parameter in net.parameters():  # also biases and norms
        nn.init.normal_(parameter, std=0.3)
    return net


def capture(net, stage, block, image):
    """Return a modulation and its input in eval mode."""
    seen = []
    modulation = net.layers[stage].blocks[block].modulation
    handle = modulation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mode = net.training
    with torch.no_grad():
        net.eval()(image[None])
    net.train(mode)
    handle.remove()
    return modulation, seen[0]


def by_hand(modulation, x):
    """Gates and modulator by Eq. 4 to 6, one kernel weight at a time."""
    f = x[0] @ modulation.f.weight.T + modulation.f.bias
    dim, height, width = modulation.dim, *x.shape[1:3]
    context, gates = f[..., dim : 2 * dim], f[..., 2 * dim :]
    total = torch.zeros_like(context)
    for level, layer in enumerate(modulation.focal_layers):
        kernel = layer[0].weight[:, 0]
        reach = kernel.shape[-1] // 2
        padded = F.pad(context, (0, 0, reach, reach, reach, reach))
        context = F.gelu(
            sum(
                padded[row : row + height, column : column + width] * kernel[:, row, column]
                for row in range(2 * reach + 1)
                for column in range(2 * reach + 1)
            )
        )
        total = total + gates[..., level, None] * context
    total = total + gates[..., -1, None] * F.gelu(context.mean(dim=(0, 1)))
    if modulation.normalize_modulator:
        total = total / gates.shape[-1]
    return gates, total @ modulation.h.weight[:, :, 0, 0].T + modulation.h.bias


@pytest.mark.parametrize('settings', [{}, dict(normalize_modulator=True), dict(focal_levels=0)])
def test_gates_and_modulator_follow_the_equations(settings):
    net = build(**settings)
    image = torch.randn(3, 37, 50)
    maps = modulation_maps(net, image, stage=1, block=0)
    with torch.no_grad():
        gates, modulator = by_hand(*capture(net, 1, 0, image))
    levels = settings.get('focal_levels', 2)
    assert maps.gates.shape == (levels + 1, 5, 7)
    assert maps.modulator.shape == (5, 7)
    assert maps.gates.dtype == maps.modulator.dtype == np.float32
    np.testing.assert_allclose(maps.gates, gates.permute(2, 0, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps.modulator, modulator.norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert maps.kernel_sizes == (3, 5)[:levels]
    assert (maps.stride, maps.stage, maps.block) == (8, 1, 0)
    first = modulation_maps(net, image, stage=0)
    assert (first.stride, first.gates.shape) == (4, (levels + 1, 10, 13))


def test_watching_records_every_image_of_every_pass():
    net = build()
    images = torch.randn(2, 3, 32, 32)
    with watch_modulation(nn.Sequential(net)) as seen, torch.no_grad():
        net.eval()(images)
        net(images[1:])
    assert len(seen) == 3
    np.testing.assert_allclose(seen[1].gates, seen[2].gates, atol=1e-5)
    np.testing.assert_allclose(
        seen[0].modulator, modulation_maps(net, images[0]).modulator, atol=1e-5
    )
    assert not np.allclose(seen[0].gates, seen[1].gates)


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks]


@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('what', ['modulation', 'field'])
def test_model_is_not_changed(what, fails):
    net = build(frozen_stages=1, drop_path_rate=0.5, use_checkpoint=True).train()
    next(net.layers[1].parameters()).grad = marked = torch.full_like(
        next(net.layers[1].parameters()), 7.0
    )
    modes = [module.training for module in net.modules()]
    needs = [parameter.requires_grad for parameter in net.parameters()]
    assert len(set(modes)) == len(set(needs)) == 2
    images = torch.randn(1, 4 if fails else 3, 32, 32)

    def run():
        with torch.no_grad():
            if what == 'modulation':
                modulation_maps(net, images[0])
            else:
                receptive_field(net, images)

    if fails:
        with pytest.raises(RuntimeError, match='channels'):
            run()
    else:
        run()
    assert not hooks_of(net)
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == needs
    grads = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert len(grads) == 1 and grads[0] is marked and (marked == 7).all()


def test_hooks_are_removed_if_the_forward_pass_raises():
    net = build()
    with pytest.raises(ZeroDivisionError), watch_modulation(net):
        assert len(hooks_of(net)) == 2
        raise ZeroDivisionError
    assert not hooks_of(net)


def test_kernels_are_copies_and_cropped_to_the_pretraining_window():
    net = build(focal_windows=9, focal_levels=3)
    layers = net.layers[1].blocks[1].modulation.focal_layers
    complete = level_kernels(net)
    assert [kernel.shape for kernel in complete] == [(16, 9, 9), (16, 11, 11), (16, 13, 13)]
    cropped = level_kernels(net, window=3)
    assert [kernel.shape for kernel in cropped] == [(16, 3, 3), (16, 5, 5), (16, 7, 7)]
    for level, kernel in enumerate(cropped):
        weight = layers[level][0].weight.detach()[:, 0]
        np.testing.assert_array_equal(kernel, weight[:, 3:-3, 3:-3])
        assert kernel.dtype == np.float32
    complete[0][:] = 0
    assert layers[0][0].weight.abs().min() > 0
    for window in (4, 11, 0):
        with pytest.raises(UserError, match=f'window={window} '):
            level_kernels(net, window=window)
    assert level_kernels(build(focal_levels=0), window=3) == []


def close_global_gates(net):
    for stage in net.layers:
        for block in stage.blocks:
            with torch.no_grad():
                block.modulation.f.weight[-1].zero_()
                block.modulation.f.bias[-1].zero_()


@pytest.mark.parametrize('conv_embed', [False, True])
@pytest.mark.parametrize('stage', [0, 1])
def test_without_global_context_the_effective_field_fills_the_theoretical_box(stage, conv_embed):
    net = build(
        embed_dim=16, depths=(1, 1), focal_windows=3, focal_levels=2, use_conv_embed=conv_embed
    ).double()  # the corners of a deep stack are tiny
    images = torch.randn(2, 3, 160, 192, dtype=torch.float64)
    opened = receptive_field(net, images, stage)
    assert (opened.values > 0).mean() > 0.99  # through the global context
    close_global_gates(net)
    field = receptive_field(net, images, stage)
    assert field.values.shape == (160, 192) and field.values.dtype == np.float32
    assert field.values.max() == 1
    top, left, bottom, right = field.box
    assert min(top, left) > 0 and bottom < 160 and right < 192
    # Patches: 4 x (1 + 2 x 3), then 4 x (2 x (1 + 2 x 3) + 2 x 3). Overlapped: 7 + 4 x (7 - 1),
    # then 7 + 4 x (3 + 2 x (7 - 1) + 2 x 3 - 1).
    assert field.size == {False: (28, 80), True: (31, 87)}[conv_embed][stage]
    assert right - left == field.size
    rows, columns = field.values.nonzero()
    assert (rows.min(), columns.min()) == (top, left)
    assert (rows.max() + 1, columns.max() + 1) == (bottom, right)


def test_field_of_constant_kernels_is_centred_and_symmetric():
    net = build(depths=(1,), focal_windows=5, focal_levels=1, patch_norm=False)
    close_global_gates(net)
    modulation = net.layers[0].blocks[0].modulation
    with torch.no_grad():
        modulation.focal_layers[0][0].weight.fill_(1)
        net.patch_embed.proj.weight.copy_(
            net.patch_embed.proj.weight.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 3, 4, 4)
        )
    # With a constant image, locations differ only by the weights.
    values = receptive_field(net, torch.ones(1, 3, 44, 44), 0).values
    np.testing.assert_allclose(values, values[::-1], rtol=1e-4)
    np.testing.assert_allclose(values, values[:, ::-1], rtol=1e-4)
    np.testing.assert_allclose(values, values.T, rtol=1e-4)
    # Location (5, 5) of 11 x 11 and two on each side; the residual path adds to (5, 5).
    inside = np.zeros((44, 44), bool)
    inside[12:32, 12:32] = True
    assert (values[inside] > 0).all() and (values[~inside] == 0).all()
    own = values[20:24, 20:24]
    np.testing.assert_allclose(own, own[0, 0], rtol=1e-4)


def test_field_is_the_mean_over_images():
    net = build()
    images = torch.randn(2, 3, 32, 40)
    pixels = images.clone().requires_grad_()
    outs = []
    handle = net.layers[1].register_forward_hook(lambda _, __, out: outs.append(out))
    net.eval()(pixels)
    handle.remove()
    outs[0][:, 2, 2].sum().backward()
    expected = pixels.grad.abs().mean(dim=(0, 1))
    expected /= expected.max()
    np.testing.assert_allclose(receptive_field(net, images).values, expected, atol=1e-5)


def test_field_in_inference_mode():
    net = build()
    images = torch.randn(1, 3, 32, 32)
    expected = receptive_field(net, images).values
    with torch.inference_mode():
        np.testing.assert_allclose(receptive_field(net, images.clone()).values, expected)


def test_missing_stages_blocks_and_backbones_raise():
    net = build()
    assert find_focalnet(nn.ModuleDict(dict(backbone=net))) is net
    assert find_block(net) == (1, 1)
    assert find_block(net, -2, 0) == (0, 0)
    with pytest.raises(UserError, match='Linear'):
        find_focalnet(nn.Linear(1, 1))
    image = torch.randn(3, 32, 32)
    with pytest.raises(UserError, match='stage 2'):
        modulation_maps(net, image, stage=2)
    with pytest.raises(UserError, match='block -3'):
        level_kernels(net, block=-3)
    with pytest.raises(UserError, match='stage -3'):
        receptive_field(net, image[None], stage=-3)


def config(*transforms, **settings):
    preprocessor = dict(type='DetDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[2.0, 4.0, 8.0])
    pipeline = [dict(type='LoadImageFromFile'), *transforms, dict(type='PackDetInputs')]
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(data_preprocessor={**preprocessor, 'bgr_to_rgb': True, **settings}),
            test_dataloader=dict(dataset=dict(pipeline=pipeline)),
        )
    )


@pytest.mark.parametrize(('scale', 'size'), [((60, 20), (20, 40)), ((50, 50), (25, 50))])
def test_image_is_resized_normalised_and_padded_as_in_the_config(scale, size):
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    cfg = config(dict(type='Resize', scale=scale, keep_ratio=True), pad_size_divisor=32)
    shown, pixels = prepare_image(image, cfg)
    assert shown.shape == (*size, 3) and shown.dtype == np.uint8
    assert pixels.shape == (3, 32, 64) and pixels.dtype == torch.float32
    inside, outside = pixels[:, : size[0], : size[1]], pixels[:, size[0] :]
    expected = (shown.astype(np.float32) - [1, 2, 3]) / [2, 4, 8]
    np.testing.assert_allclose(inside.permute(1, 2, 0), expected, rtol=1e-5)
    assert not outside.any()


def test_image_without_resize_and_mean_is_unchanged():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    shown, pixels = prepare_image(image, config(mean=None, std=None, bgr_to_rgb=False))
    np.testing.assert_array_equal(shown, image[..., ::-1])
    np.testing.assert_array_equal(pixels.permute(1, 2, 0), image)


def test_other_mixers_raise():
    net = FocalNet(embed_dim=4, depths=(1,), mixer='pooling')
    with pytest.raises(UserError, match="mixer='focal_modulation'"):
        find_block(net)
