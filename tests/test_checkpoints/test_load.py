"""Load pretrained weights: wrappers, prefixes, changes of windows and levels, refused files."""

import random

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from small_focalnet import SMALL, classifier_state, small

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import CheckpointError, fetch, read_checkpoint
from mmfocalnet.models import MIXERS, load_pretrained, pretrained


def features(net, x):
    """Outputs before the output norms, which are not in classification files."""
    for i in net.out_indices:
        torch.nn.init.ones_(getattr(net, f'norm{i}').weight)
        torch.nn.init.zeros_(getattr(net, f'norm{i}').bias)
    with torch.no_grad():
        return net.eval()(x)


@pytest.fixture
def saved(tmp_path):
    net = small()
    path = tmp_path / 'focalnet_small.pth'
    torch.save({'model': classifier_state(net)}, path)
    return net, path


def init_cfg(path, **kwargs):
    return dict(type='Pretrained', checkpoint=str(path), **kwargs)


@pytest.mark.parametrize('windows', [[9, 9, 9, 9], [11, 9, 9, 7], [3, 5, 3, 3]])
@pytest.mark.parametrize('size', [(64, 96), (37, 50)])
def test_zero_padded_kernels_keep_the_outputs(saved, windows, size):
    source, path = saved
    net = FocalNet(**{**SMALL, 'focal_windows': windows}, init_cfg=init_cfg(path))
    net.init_weights()
    x = torch.randn(2, 3, *size)
    for out, expected in zip(features(net, x), features(source, x), strict=True):
        assert ((out - expected).abs().max() / expected.abs().max()) < 1e-5


def test_the_log_lists_the_changes(saved, monkeypatch):
    _, path = saved
    lines = []
    monkeypatch.setattr(pretrained, 'print_log', lambda line, **kwargs: lines.append(line))
    report = load_pretrained(small(focal_windows=[9, 9, 3, 1]), path)
    assert report.padded == {'3x3 to 9x9': 2, '5x5 to 11x11': 2}
    assert report.cropped == {'3x3 to 1x1': 1, '5x5 to 3x3': 1}
    assert report.dropped == ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']
    assert report.initial[0] == 'norm0.weight'
    [line] = lines
    assert str(report) in line and 'use_postln' in line
    assert '4 kernels zero-padded' in line and 'dropped: norm.weight' in line


def test_cropping_keeps_the_centre(saved):
    source, path = saved
    net = small(focal_windows=1)
    load_pretrained(net, path)
    name = 'layers.2.blocks.1.modulation.focal_layers.1.0.weight'
    assert torch.equal(net.state_dict()[name], source.state_dict()[name][..., 1:-1, 1:-1])


def test_added_levels_have_zero_gates_and_the_global_gate_stays_last(saved):
    source, path = saved
    net = small(focal_levels=[3, 2, 4, 2], focal_windows=5)
    report = load_pretrained(net, path)
    assert report.levels == {'2 to 3': 1, '2 to 4': 2}
    old = source.layers[2].blocks[0].modulation.f
    new = net.layers[2].blocks[0].modulation.f
    dim = old.in_features
    for a, b in ((old.weight, new.weight), (old.bias, new.bias)):
        assert torch.equal(b[: 2 * dim + 2], a[: 2 * dim + 2])
        assert not b[2 * dim + 2 : -1].any()
        assert torch.equal(b[-1], a[-1])


def test_removing_levels_is_refused(saved):
    _, path = saved
    with pytest.raises(CheckpointError, match=r'layers\.1\.blocks\.0 .*focal_levels=2.*--levels 2'):
        load_pretrained(small(focal_levels=[2, 1, 2, 2]), path)


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
def test_the_backbone_of_a_detector(tmp_path, prefix):
    source = small()
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    state['neck.lateral_convs.0.conv.weight'] = torch.randn(2, 2)
    torch.save({'meta': {'epoch': 3}, 'state_dict': state}, tmp_path / 'detector.pth')
    assert_loads(source, tmp_path / 'detector.pth', prefix)


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'teacher'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'encoder.', 'visual.', 'module.backbone.'])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    source = small()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: state}, tmp_path / 'wrapped.pth')
    assert_loads(source, tmp_path / 'wrapped.pth')


def assert_loads(source, path, prefix=None):
    net = small()
    load_pretrained(net, path, prefix)
    for key, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_half_precision_and_the_format_before_pytorch_1_6(tmp_path):
    source = small()
    torch.save(
        source.half().state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False
    )
    net = small()
    load_pretrained(net, tmp_path / 'old.pth')
    assert net.norm0.weight.dtype == torch.float32
    torch.testing.assert_close(net.norm0.weight, source.norm0.weight.float())


def test_init_weights_of_an_mmdet_detector_keeps_the_loaded_weights(saved):
    from mmdet.registry import MODELS

    source, path = saved
    backbone = dict(type='FocalNet', **SMALL, out_indices=(1, 2, 3), init_cfg=init_cfg(path))
    cfg = dict(
        type='SingleStageDetector',
        backbone=backbone,
        neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=8, num_outs=3),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):  # training runs of other tests set another
        model = MODELS.build(Config(cfg))
    model.init_weights()
    key = 'layers.2.blocks.1.modulation.f.weight'
    assert torch.equal(model.backbone.state_dict()[key], source.state_dict()[key])
    assert model.backbone.is_init


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(embed_dim=16), r'embed_dim is 8 .* 16'),
        (dict(depths=(1, 1, 3, 1)), r'depths is \[1, 1, 2, 1\]'),
        (dict(use_conv_embed=True), r'use_conv_embed is False'),
        (dict(use_layerscale=True), r'use_layerscale is False'),
        (dict(use_postln_in_modulation=True), r'use_postln_in_modulation is False'),
        (dict(in_chans=2), r'in_chans=3'),
        (dict(depths=(1, 1)), r'depths is'),
    ],
)
def test_another_architecture_is_refused(saved, settings, message):
    _, path = saved
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(small(**settings), path)
    assert str(error.value).startswith(str(path))


FC1_BIAS = 'layers.0.blocks.0.mlp.fc1.bias'


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('extra.weight', torch.ones(1), r'unexpected keys: extra\.weight'),
        (FC1_BIAS, None, f'missing keys: {FC1_BIAS}'),
        (FC1_BIAS, torch.ones(3), r'fc1\.bias \(3,\) for \(32,\)'),
        ('patch_embed.proj.weight', None, r'no FocalNet'),
        (3, torch.ones(1), r' 3 '),
        ('x', torch.ones(2, 2).to_sparse(), r' x '),
        ('x', torch.empty(2, device='meta'), r' x '),
        ('patch_embed.proj.weight', torch.ones(()), r'shape \(\), expected 4'),
        ('layers.0.blocks.0.modulation.f.weight', torch.ones(3), r'\(3,\), expected 2'),
        ('layers.x.blocks.0.modulation.f.weight', torch.ones(3), r'unexpected keys: layers\.x'),
        ('a.modulation.f.weight', torch.ones(3), r'unexpected keys: a\.modulation'),
    ],
)
def test_unknown_and_wrong_entries_raise_and_do_not_change_the_model(saved, key, value, message):
    source, path = saved
    state = {**classifier_state(source), key: value}
    torch.save({k: v for k, v in state.items() if v is not None}, path)
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(net, path)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_two_backbones_in_one_file_need_a_prefix(tmp_path):
    state = small().state_dict()
    both = {f'{prefix}.{k}': v for prefix in ('student', 'ema') for k, v in state.items()}
    torch.save(both, tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match=r"'ema\.', 'student\.'"):
        load_pretrained(small(), tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match=r"'teacher\.'"):
        load_pretrained(small(), tmp_path / 'two.pth', prefix='teacher')
    load_pretrained(small(), tmp_path / 'two.pth', prefix='ema')


@pytest.mark.parametrize('length', [0, 3, 700, 20000, -10])
def test_truncated_files_are_refused(saved, length):
    _, path = saved
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r'small\.pth .* truncated'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\n <!DOCTYPE html><html>moved</html>', 'HTML'),
        (b'<html></html>', 'HTML'),
        (b'\xef\xbb\xbf<html>', 'HTML'),
        (b'not a checkpoint', ''),
        (b'\x80\x04K\x01.', ''),
        (bytes(5000), ''),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / 'other.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'other\.pth .*{message}'):
        read_checkpoint(tmp_path / 'other.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'epoch': 3, 'lr': 0.1}, 'epoch, lr'),
        ([1, 2], 'list'),
        ({'state_dict': {}}, 'empty'),
        ({'state_dict': {'a': torch.ones(1)}, 'model': {'a': torch.ones(1)}}, 'state_dict, model'),
    ],
)
def test_files_without_one_state_dict_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=rf'other\.pth .*{message}'):
        read_checkpoint(tmp_path / 'other.pth')


def test_wrappers_without_tensors_are_skipped(tmp_path):
    torch.save({'model': {'depth': 3}, 'teacher': {'a': torch.ones(1)}}, tmp_path / 'net.pth')
    assert read_checkpoint(tmp_path / 'net.pth').keys() == {'a'}


@pytest.mark.fuzz
@pytest.mark.parametrize('zipped', [True, False])
def test_damaged_bytes_raise_one_line_errors(tmp_path, zipped):
    path = tmp_path / 'damaged.pth'
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    random.seed(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(20):
            # Mostly in the pickle at the start, which contains the structure.
            damaged[random.randrange(min(len(damaged), 20000))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            load_pretrained(small(), path)
        except CheckpointError as error:
            assert '\n' not in str(error)
            assert 'damaged.pth' in str(error)
            refused += 1
    assert refused > 30


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_pickled_code_is_refused_and_never_run(tmp_path):
    mark = tmp_path / 'ran'
    torch.save({'model': small().state_dict(), 'config': Bomb(mark)}, tmp_path / 'bomb.pth')
    with pytest.raises(CheckpointError, match=r'bomb\.pth .*open'):
        read_checkpoint(tmp_path / 'bomb.pth')
    assert not mark.exists()


@pytest.mark.parametrize(
    'source',
    [
        None,
        3,
        '~nouser-of-this/x.pth',
        'x' * 5000 + '.pth',
        'http://[bad/x.pth',
        'nowhere/none.pth',
    ],
)
def test_invalid_and_missing_sources_are_refused(source):
    with pytest.raises(CheckpointError) as error:
        fetch(source)
    assert str(source)[:50] in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Xavier', layer='Linear'),
        [dict(type='Pretrained', checkpoint='x')],
        dict(type='Pretrained'),
        dict(type='Pretrained', checkpoint='x', strict=False),
    ],
)
def test_invalid_init_cfg(init_cfg):
    with pytest.raises(ValueError, match='init_cfg'):
        FocalNet(**SMALL, init_cfg=init_cfg).init_weights()


def test_initializing_twice_keeps_the_loaded_weights(saved):
    source, path = saved
    net = FocalNet(**SMALL, init_cfg=init_cfg(path))
    net.init_weights()
    net.init_weights()
    key = 'patch_embed.proj.weight'
    assert torch.equal(net.state_dict()[key], source.state_dict()[key])


@pytest.mark.parametrize('mixer', sorted(set(MIXERS) - {'focal_modulation'}))
def test_a_model_with_another_mixer_is_refused(saved, mixer):
    _, path = saved
    with pytest.raises(CheckpointError) as error:
        load_pretrained(small(mixer=mixer), path)
    assert str(error.value).startswith(str(path))
