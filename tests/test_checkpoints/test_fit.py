"""What each fitting function preserves, in double precision."""

import pytest
import torch
from torch.nn import functional as F

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import (
    CheckpointError,
    adapt_input_channels,
    append_levels,
    describe,
    fit_state,
    insert_levels,
    kernel_energy,
    resize_kernel,
    resize_patch_embedding,
)

SMALL = dict(embed_dim=8, depths=(1, 2), focal_levels=2, focal_windows=3, drop_path_rate=0.0)
OVERLAPPED = dict(use_conv_embed=True, use_postln=True, use_layerscale=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(**kwargs):
    """A network without zero gates and biases; output norms have initial values."""
    net = FocalNet(**{**SMALL, **kwargs}).double().eval()
    for name, parameter in net.named_parameters():
        if not name.startswith('norm'):
            torch.nn.init.normal_(parameter, std=0.4)
    return net


def fitted(source, options=None, **kwargs):
    """A network of other settings with the fitted weights of ``source``, and the report."""
    net = build(**kwargs)
    state, report = fit_state(source.state_dict(), net.state_dict(), **(options or {}))
    net.load_state_dict(state)
    assert describe(net.state_dict()) == describe(state)
    return net, report


@torch.no_grad()
def change(net, source, x, y=None):
    """Maximum difference of any output, relative to the maximum value."""
    pairs = zip(net(x if y is None else y), source(x), strict=True)
    return max(((out - ref).abs().max() / ref.abs().max()).item() for out, ref in pairs)


def images(channels=3, size=(40, 52)):
    return 2 * torch.randn(2, channels, *size, dtype=torch.float64)


@pytest.mark.parametrize('windows', [5, [9, 11]])
@pytest.mark.parametrize('size', [(40, 52), (37, 29), (4, 4)])
def test_padding_kernels_keeps_the_function(windows, size):
    source = build()
    net, report = fitted(source, focal_windows=windows)
    assert sum(report.padded.values()) == 6
    assert not report.cropped
    assert not report.energy_cut
    assert change(net, source, images(size=size)) < 1e-12


def test_cropping_reports_the_energy_cut():
    source = build(focal_windows=5)
    for stage, value in zip(source.layers, (1.0, 2.0), strict=True):
        for block in stage.blocks:
            torch.nn.init.constant_(block.modulation.focal_layers[0][0].weight, value)
            rim = block.modulation.focal_layers[1][0].weight.data
            torch.nn.init.zeros_(rim)[..., 1:-1, 1:-1] = value
    _, report = fitted(source, focal_windows=3)
    assert report.cropped == {'5x5 to 3x3': 3, '7x7 to 5x5': 3}
    assert report.energy_cut == {'5x5 to 3x3': pytest.approx(16 / 25), '7x7 to 5x5': 0}
    assert '5x5 to 3x3: 3 with 64.0%' in str(report)


def test_energy_cut_is_relative_to_the_sum_over_kernels():
    source = build(focal_levels=1, depths=(2,), focal_windows=3)
    first, second = (block.modulation.focal_layers[0][0].weight.data for block in blocks(source))
    first.zero_()[..., 1, 1] = 3
    second.zero_()[..., 0, 0] = 1
    _, report = fitted(source, focal_levels=1, depths=(2,), focal_windows=1)
    assert report.energy_cut == {'3x3 to 1x1': pytest.approx(0.1)}
    second.zero_()
    first.zero_()
    _, report = fitted(source, focal_levels=1, depths=(2,), focal_windows=1)
    assert report.energy_cut == {'3x3 to 1x1': 0}


def blocks(net):
    return [block for stage in net.layers for block in stage.blocks]


def test_resizing_a_kernel_there_and_back():
    weight = torch.randn(4, 1, 5, 5)
    large = resize_kernel(weight, 11)
    assert kernel_energy(large) == pytest.approx(kernel_energy(weight))
    assert torch.equal(resize_kernel(large, 5), weight)


LEVELS = [dict(focal_levels=3), dict(focal_levels=[4, 2], focal_windows=[3, 5])]


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('normalize', [False, True])
def test_appended_levels_change_the_global_context_only(levels, normalize):
    source = build(normalize_modulator=normalize)
    options = dict(normalize_modulator=normalize)
    net, report = fitted(source, options, **levels, **options)
    assert not report.function_kept
    assert not report.initial  # the kernels are no longer random
    assert change(net, source, images()) > 1e-4
    for block in blocks(source):
        block.modulation.f.weight.data[-1] = 0
        block.modulation.f.bias.data[-1] = 0
    net, _ = fitted(source, options, **levels, **options)
    assert change(net, source, images()) < 1e-12


def test_appended_kernels_are_centred_ones():
    source = build(focal_levels=1)
    net, _ = fitted(source, focal_levels=2)
    kernel = blocks(net)[0].modulation.focal_layers[1][0].weight.detach()
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, kernel, padding=2, groups=8), x, rtol=0, atol=0)


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('more', [{}, dict(use_postln_in_modulation=True, **OVERLAPPED)])
def test_inserted_levels_keep_the_function(levels, normalize, more):
    source = build(normalize_modulator=normalize, **more)
    options = dict(keep_function=True, normalize_modulator=normalize)
    net, report = fitted(source, options, normalize_modulator=normalize, **levels, **more)
    assert report.function_kept
    assert not report.cropped
    assert change(net, source, images()) < 1e-10


def test_inserted_levels_keep_the_function_in_single_precision():
    source = build().float()
    net, _ = fitted(source, dict(keep_function=True), focal_levels=4)
    assert change(net.float(), source, images().float()) < 1e-6


def test_inserted_levels_of_a_half_precision_checkpoint_are_finite():
    source = build()
    half = build().half()
    half.load_state_dict(source.state_dict())
    net, _ = fitted(half, dict(keep_function=True), focal_levels=3)
    assert change(net, source, images()) < 0.02


def test_inserting_levels_needs_an_existing_level():
    source = build(focal_levels=0)
    with pytest.raises(CheckpointError, match='keep the function'):
        fitted(source, dict(keep_function=True), focal_levels=1)
    fitted(source, focal_levels=1)


@pytest.mark.parametrize(
    'settings',
    [
        dict(use_gates=False),
        dict(use_gates=False, focal_levels=0),
        dict(use_global_context=False),
        dict(aggregate='top', focal_levels=3),
    ],
    ids=str,
)
def test_models_with_fewer_gates_are_refused_with_their_settings(settings):
    with pytest.raises(CheckpointError, match=next(iter(settings))):
        fitted(build(), **settings)


@pytest.mark.parametrize('add_levels', [append_levels, insert_levels])
def test_adding_levels_does_not_change_its_argument(add_levels):
    modulation = blocks(build())[0].modulation.state_dict()
    before = {key: value.clone() for key, value in modulation.items()}
    added = add_levels(modulation, [7, 9], normalize_modulator=True)
    assert len(added) == len(modulation) + 2
    assert modulation.keys() == before.keys()
    assert all(torch.equal(modulation[key], value) for key, value in before.items())


def test_inconsistent_gates_and_kernels_are_refused():
    state = build().state_dict()
    name = 'layers.1.blocks.0.modulation.focal_layers.'
    target = build(focal_levels=3).state_dict()
    state[f'{name}2.0.weight'] = target[f'{name}2.0.weight']
    with pytest.raises(CheckpointError, match=r'layers\.1\.blocks\.0 has gates'):
        fit_state(state, target)


@pytest.mark.parametrize('embedding', [{}, OVERLAPPED])
@pytest.mark.parametrize(('old', 'new'), [(3, 1), (4, 1), (1, 3), (1, 4), (3, 4), (3, 7), (2, 3)])
def test_input_channels(embedding, old, new):
    source = build(in_chans=old, **embedding)
    net, report = fitted(source, in_chans=new, **embedding)
    assert report.embedding == [f'input channels {old} to {new}']
    x, others = images(old), images(new)
    if 1 in (old, new):  # an image with equal channels
        x = x[:, :1].expand(-1, old, -1, -1)
        y = x[:, :1].expand(-1, new, -1, -1)
    else:  # any values in the new channels
        y = torch.cat([x, others[:, old:]], 1)
    assert change(net, source, x, y) < 1e-12


@pytest.mark.parametrize(('old', 'new'), [(3, 2), (4, 3)])
def test_removing_input_channels_is_refused(old, new):
    with pytest.raises(CheckpointError, match=f'{old} input channels .* {new}'):
        adapt_input_channels(torch.ones(8, old, 4, 4), new)


def enlarge_patches(x, old, new):
    """Enlarge every patch of an image by itself, bilinearly."""
    b, c, h, w = x.shape
    x = x.unfold(2, old, old).unfold(3, old, old)  # [B, C, H / old, W / old, old, old]
    x = F.interpolate(x.reshape(b, -1, old, old), size=new, mode='bilinear')
    x = x.reshape(b, c, h // old, w // old, new, new)
    return x.transpose(3, 4).reshape(b, c, h // old * new, w // old * new)


@pytest.mark.parametrize(('small', 'large'), [(4, 8), (4, 6), (2, 16), (1, 4), (14, 16)])
@pytest.mark.parametrize('enlarging', [True, False])
def test_patch_sizes(small, large, enlarging):
    old, new = (small, large) if enlarging else (large, small)
    source = build(patch_size=old)
    net, report = fitted(source, patch_size=new)
    assert report.embedding == [f'patch size {old} to {new}']
    x = images(size=(6 * small, 4 * small))
    y = enlarge_patches(x, small, large)
    assert change(net, source, *((x, y) if enlarging else (y, x))) < 1e-10


def test_enlarged_patch_embeddings_have_the_minimum_norm():
    weight = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    basis = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    enlarge = F.interpolate(basis, size=8, mode='bilinear').reshape(16, 64)
    expected = weight.reshape(15, 16) @ torch.linalg.pinv(enlarge).T
    large = resize_patch_embedding(weight, 8)
    torch.testing.assert_close(large, expected.reshape(5, 3, 8, 8), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(resize_patch_embedding(large, 4), weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(('old', 'new'), [(7, 4), (4, 7)])
def test_the_overlapped_embedding_cannot_be_resized(old, new):
    with pytest.raises(CheckpointError, match=f'{old}x{old} .* {new}x{new}'):
        resize_patch_embedding(torch.ones(8, 3, old, old), new)


def test_overlapped_and_plain_embeddings_are_incompatible():
    with pytest.raises(CheckpointError, match='use_conv_embed is True'):
        fitted(build(use_conv_embed=True), patch_size=8)


def test_a_stem_kernel_that_is_not_square_is_refused():
    source = build()
    state = {**source.state_dict(), 'patch_embed.proj.weight': torch.ones(8, 3, 4, 5)}
    with pytest.raises(CheckpointError, match=r'patch_embed.proj.weight \(8, 3, 4, 5\)'):
        fit_state(state, build(patch_size=8).state_dict())


def test_all_changes_at_once_with_a_target_on_the_meta_device():
    settings = dict(in_chans=1, patch_size=8, focal_levels=3, focal_windows=[5, 1])
    target = build(**settings).to('meta').state_dict()
    source = build().state_dict()
    state, report = fit_state(source, target)
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in target.items()
    }
    assert not any(value.is_meta for value in state.values())
    assert report.embedding == ['input channels 3 to 1', 'patch size 4 to 8']
    assert report.levels == {'2 to 3': 3}
    assert report.padded == {'3x3 to 5x5': 1, '5x5 to 7x7': 1}
    assert report.cropped == {'3x3 to 1x1': 2, '5x5 to 3x3': 2}
