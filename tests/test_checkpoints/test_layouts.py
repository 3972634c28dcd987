"""All layouts: bit-exact round trips, and the same features as the original libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_focalnet import CLASSES, LARGE, classifier_state, small

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from mmfocalnet.checkpoints.layouts import select_network, to_timm, to_transformers
from mmfocalnet.conversion.architecture import deduce
from mmfocalnet.conversion.convert import convert, inspect_checkpoint
from mmfocalnet.models import load_pretrained, pretrained

DATA = Path(__file__).parents[1] / 'data'
VARIANTS = {
    'tiny': {},
    'levels': dict(focal_levels=[2, 1, 3, 2], focal_windows=[3, 5, 3, 1]),
    'large': LARGE,
    'huge': dict(use_postln_in_modulation=True, **LARGE),
    'normalized': dict(normalize_modulator=True, **LARGE),
}
TIMM = dict(embed_dim=4, depths=(1, 1, 2, 1), focal_levels=(2, 1, 2, 2), focal_windows=(3, 5, 3, 3))
TIMM_VARIANTS = {'prenorm': {}, '22k': VARIANTS['huge']}


def select(state, prefix=None, metadata=None):
    return select_network(Checkpoint('net.pth', state, metadata or {}), prefix)


def stage_outputs(net, x):
    """Features (B, C, H, W) after each stage, before the output norms."""
    outs = []
    hooks = [
        stage.register_forward_hook(lambda *args: outs.append(args[-1].permute(0, 3, 1, 2)))
        for stage in net.layers
    ]
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    return outs


def assert_close(actual, expected):
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() / b.abs().max() < 1e-5


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
        assert state[key].shape == value.shape


@pytest.fixture(params=VARIANTS)
def released(request, tmp_path):
    """Settings, network and a file of it in the release's classification layout."""
    settings = VARIANTS[request.param]
    net = small(**settings)
    state = classifier_state(net)
    torch.save({'model': state}, tmp_path / 'release.pth')
    return settings, net, state, tmp_path / 'release.pth'


@pytest.fixture
def log(monkeypatch):
    """The lines logged while loading."""
    lines = []
    monkeypatch.setattr(pretrained, 'print_log', lambda line, **kwargs: lines.append(line))
    return lines


def metadata_settings(settings):
    return {key: key in settings for key in ('use_postln', 'normalize_modulator')}


@pytest.mark.parametrize(
    ('to', 'name'),
    [
        ('ours', 'ours.pth'),
        ('ours', 'ours.safetensors'),
        ('timm', 'timm.safetensors'),
        ('transformers', 'folder'),
        ('release', 'again.pth'),
    ],
)
def test_round_trips_are_bit_exact(released, tmp_path, to, name):
    settings, net, state, path = released
    convert(inspect_checkpoint(path, given=metadata_settings(settings)), tmp_path / name, to)
    found = inspect_checkpoint(tmp_path / name)
    convert(found, tmp_path / 'back.pth', 'release')
    content = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert content.keys() == {'model'}
    assert_same(content['model'], state)
    if to in ('ours', 'transformers'):  # their metadata have what the tensors do not show
        assert found.network.settings == metadata_settings(settings)
        with torch.device('meta'):
            rebuilt = FocalNet(**found.architecture.settings, drop_path_rate=0.0)
        assert str(rebuilt) == str(net)
    loaded = small(**settings)
    load_pretrained(loaded, tmp_path / name)
    x = torch.randn(1, 3, 37, 50)
    assert_close(stage_outputs(loaded, x), stage_outputs(net, x))


# --- transformers ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def transformers():
    module = pytest.importorskip('transformers')
    if not module.is_torch_available():
        pytest.skip('this transformers does not work with this PyTorch')
    return module


def tokens(model, x):
    """Features (B, C, H * W) after each stage of a network of transformers.

    Its `reshaped_hidden_states` are taken after the downsampling instead.
    """
    network, outs = getattr(model, 'focalnet', model), []
    for stage in network.encoder.stages:
        stage.register_forward_hook(lambda *args: outs.append(args[-1][1].transpose(1, 2)))
    with torch.no_grad():
        model.eval()(x)
    return outs


def test_transformers_loads_a_converted_folder(released, tmp_path, transformers):
    settings, net, state, path = released
    if settings.get('use_layerscale') and transformers.__version__ < '5':
        pytest.skip('transformers 4 takes the names of layer scales (gamma_1) for those of norms')
    convert(
        inspect_checkpoint(path, given=metadata_settings(settings)),
        tmp_path / 'folder',
        'transformers',
    )
    model, info = transformers.FocalNetForImageClassification.from_pretrained(
        tmp_path / 'folder', output_loading_info=True
    )
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    assert_same(model.state_dict(), to_transformers(state))
    x = torch.randn(2, 3, 64, 96)
    ours = stage_outputs(net, x)
    pooled = torch.nn.functional.layer_norm(
        ours[-1].permute(0, 2, 3, 1), (64,), state['norm.weight'], state['norm.bias']
    ).mean((1, 2))
    logits = pooled @ state['head.weight'].T + state['head.bias']
    with torch.no_grad():
        assert_close([model.eval()(x).logits], [logits])
    assert model.config.num_labels == CLASSES


@pytest.mark.parametrize(
    'name', ['FocalNetForImageClassification', 'FocalNetModel', 'FocalNetBackbone']
)
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('safe', [True, False])
def test_checkpoints_of_all_transformers_classes_load(
    tmp_path, transformers, name, variant, safe, log
):
    ours = VARIANTS[variant]
    config = transformers.FocalNetConfig(
        embed_dim=8,
        hidden_sizes=[8, 16, 32, 64],
        depths=[1, 1, 2, 1],
        focal_levels=ours.get('focal_levels', [2] * 4),
        focal_windows=ours.get('focal_windows', [3] * 4),
        use_conv_embed='use_conv_embed' in ours,
        use_layerscale='use_layerscale' in ours,
        use_post_layernorm='use_postln' in ours,
        use_post_layernorm_in_modulation='use_postln_in_modulation' in ours,
        normalize_modulator='normalize_modulator' in ours,
    )
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if safe:
        model.save_pretrained(tmp_path)
    else:
        config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
    net = small(**ours)
    load_pretrained(net, tmp_path)
    assert f"transformers' {name}" in log[0]
    x = torch.randn(1, 3, 37, 50)
    assert_close([out.flatten(2) for out in stage_outputs(net, x)], tokens(model, x))


# --- timm -----------------------------------------------------------------------------------


def timm_network(variant):
    """State dict of a timm FocalNet, an input, and timm's features after each stage.

    timm needs torchvision, whose builds on PyPI need a CUDA PyTorch, so these tests cannot import
    it. Keys and shapes (timm_focalnet.json) and features (timm_focalnet.npz) were computed with
    `timm.models.focalnet.FocalNet` of timm 1.0.31 and a stub of torchvision, with the same random
    weights and input.
    """
    shapes = json.loads((DATA / 'timm_focalnet.json').read_text())[variant]
    rng = np.random.RandomState(0)
    state = {
        key: torch.from_numpy(0.3 * rng.standard_normal(shape)).float()
        for key, shape in shapes.items()
    }
    x = torch.from_numpy(rng.standard_normal((1, 3, 32, 64))).float()
    with np.load(DATA / 'timm_focalnet.npz') as arrays:
        features = [torch.from_numpy(arrays[f'{variant}/stage{i}']) for i in range(4)]
    return state, x, features


@pytest.mark.parametrize('variant', TIMM_VARIANTS)
def test_timm_checkpoints_load_with_the_same_features(tmp_path, variant, log):
    state, x, features = timm_network(variant)
    torch.save(state, tmp_path / 'timm.pth')
    net = FocalNet(**{**TIMM, **TIMM_VARIANTS[variant]})
    load_pretrained(net, tmp_path / 'timm.pth')
    assert "timm's focalnet_*" in log[0]
    assert_close(stage_outputs(net, x), features)


@pytest.mark.parametrize('variant', TIMM_VARIANTS)
def test_timm_keys_and_shapes_round_trip(variant):
    state, *_ = timm_network(variant)
    network = select(state)
    assert network.settings == dict(use_postln=variant == '22k')
    assert_same(to_timm(network.state, network.settings['use_postln']), state)


def test_large_fl4_is_normalized_in_the_release_only():
    """timm's large_fl4 has the same shapes, but no normalized modulator."""
    with torch.device('meta'):
        state = FocalNet('large_fl4').state_dict()
    state = {key: value for key, value in state.items() if not key.startswith('norm')}
    for renamed, layout, expected in (
        (state, 'release', True),
        (to_timm(state, use_postln=True), 'timm', False),
    ):
        network = select(renamed)
        assert network.layout == layout
        found = deduce(network)
        assert found.settings['normalize_modulator'] == expected
        assert found.origins['normalize_modulator'].startswith('assumed')


def test_conversion_to_timm_reports_a_normalized_modulator(released, tmp_path):
    settings, *_, path = released
    report = convert(
        inspect_checkpoint(path, given=metadata_settings(settings)), tmp_path / 'timm.pth', 'timm'
    )
    assert ('normalize_modulator=True' in report) == ('normalize_modulator' in settings)


def test_post_norm_of_the_file_and_of_the_model_must_agree(tmp_path):
    state, *_ = timm_network('22k')
    torch.save(state, tmp_path / 'timm.pth')
    net = FocalNet(**{**TIMM, **VARIANTS['huge'], 'use_postln': False})
    with pytest.raises(CheckpointError, match=r'timm\.pth .*use_postln=True'):
        load_pretrained(net, tmp_path / 'timm.pth')


@pytest.mark.parametrize('settings', [dict(patch_norm=False), dict(focal_factor=4)])
@pytest.mark.parametrize('to', ['timm', 'transformers'])
def test_unsupported_settings_are_refused(tmp_path, to, settings):
    state = small(**settings).state_dict()
    torch.save(state, tmp_path / 'net.pth')
    name = next(iter(settings))
    with pytest.raises(CheckpointError, match=f'{to} .*{name}='):
        convert(
            inspect_checkpoint(tmp_path / 'net.pth'),
            tmp_path / ('new.pth' if to == 'timm' else 'new'),
            to,
        )
    convert(inspect_checkpoint(tmp_path / 'net.pth'), tmp_path / 'out.pth', 'ours')
    assert_same(open_checkpoint(tmp_path / 'out.pth').state, state)


# --- recognising ----------------------------------------------------------------------------


def other_network(*keys):
    return {key: torch.ones(2) for key in keys}


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        (
            other_network(
                'patch_embed.proj.weight',
                'layers.0.blocks.0.norm1.weight',
                'layers.0.blocks.0.attn.qkv.weight',
            ),
            r"release, with 2 of 14 .*'layers\.0\.blocks\.0\.modulation\.f\.weight'",
        ),
        (
            other_network(
                'swin.embeddings.patch_embeddings.projection.weight', 'swin.layernorm.weight'
            ),
            r'layout is transformers',
        ),
        (other_network('stem.proj.weight', 'head.fc.weight'), r'layout is timm'),
        (other_network('conv1.weight', 'bn1.bias'), r"no known layout .*'conv1\.weight'"),
    ],
)
def test_other_networks_are_refused_with_the_most_similar_layout(state, message):
    with pytest.raises(CheckpointError, match=message):
        select(state)


def test_two_layouts_at_once_are_ambiguous():
    net = classifier_state(small())
    with pytest.raises(CheckpointError, match=r'release and timm'):
        select({**net, **to_timm(net, use_postln=False)})
    both = {**to_timm(net, use_postln=False), 'head.weight': torch.ones(1)}
    with pytest.raises(CheckpointError, match=r'timm layout'):
        select(both)


@pytest.mark.parametrize('prefix', [None, 'student', 'module.student.'])
def test_a_transformers_network_inside_a_larger_model(prefix):
    net = classifier_state(small())
    inner = {f'module.student.{k}': v for k, v in to_transformers(net).items()}
    network = select({**inner, 'neck.weight': torch.ones(1)}, prefix)
    assert_same(network.state, net)
    assert network.others == ['neck.weight']


@pytest.mark.parametrize(
    ('metadata', 'source'),
    [
        ({}, 'a dense model of the 2022 release or of mmfocalnet'),
        ({'mmdet_version': '2.11.0'}, "the 2022 release's mmdet 2.11.0"),
        ({'mmseg_version': '0.11.0'}, "the 2022 release's mmseg 0.11.0"),
        ({'mmengine_version': '0.10.7'}, "MMEngine's training checkpoint"),
        ({'mmfocalnet': {}}, "mmfocalnet's converter"),
    ],
)
def test_the_source_of_a_dense_file_is_read_from_its_metadata(metadata, source):
    assert source in select(small().state_dict(), metadata=metadata).source
