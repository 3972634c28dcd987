import random

import pytest
import torch
from mmengine.config import Config

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import CheckpointError, fetch, load_pretrained, read_checkpoint
from mmfocalnet.models import MIXERS

SMALL = dict(embed_dim=8, depths=(1, 1, 2, 1), focal_levels=2, focal_windows=3)


def small(**kwargs):
    net = FocalNet(**{**SMALL, 'drop_path_rate': 0.0, **kwargs})
    net.init_weights()
    for parameter in net.parameters():  # no gate, bias or norm that is zero or one by chance
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def classifier_state(net):
    """A state dict as the release's classification files hold it."""
    state = {k: v for k, v in net.state_dict().items() if not k.startswith('norm')}
    dim = net.num_features[-1]
    state.update(
        {
            'norm.weight': torch.ones(dim),
            'norm.bias': torch.zeros(dim),
            'head.weight': torch.randn(10, dim),
            'head.bias': torch.zeros(10),
        }
    )
    return state


def features(net, x):
    """Outputs before the output norms, which no classification file holds."""
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


@pytest.mark.parametrize('windows', [[9, 9, 9, 9], [11, 9, 9, 7], [3, 5, 3, 3]])
@pytest.mark.parametrize('size', [(64, 96), (37, 50)])
def test_zero_padded_kernels_leave_the_network_unchanged(saved, windows, size):
    source, path = saved
    net = FocalNet(**{**SMALL, 'focal_windows': windows}, init_cfg=pretrained(path))
    net.init_weights()
    x = torch.randn(2, 3, *size)
    for out, expected in zip(features(net, x), features(source, x), strict=True):
        assert ((out - expected).abs().max() / expected.abs().max()) < 1e-5


def pretrained(path, **kwargs):
    return dict(type='Pretrained', checkpoint=str(path), **kwargs)


def test_the_log_says_what_was_done(saved, monkeypatch):
    _, path = saved
    lines = []
    monkeypatch.setattr(
        'mmfocalnet.checkpoints.load.print_log', lambda line, **kwargs: lines.append(line)
    )
    report = load_pretrained(small(focal_windows=[9, 9, 3, 1]), path)
    assert report.padded == {'3x3 to 9x9': 2, '5x5 to 11x11': 2}
    assert report.cropped == {'3x3 to 1x1': 1, '5x5 to 3x3': 1}
    assert lines[0].endswith('; post-norm not told by the file.')
    text = str(report)
    assert '4 kernels zero-padded' in text
    assert 'dropped on purpose: norm.weight, norm.bias, head.weight, head.bias' in text
    assert 'kept at their initial values: norm0.weight' in text


def test_cropping_keeps_the_centre(saved):
    source, path = saved
    net = small(focal_windows=1)
    load_pretrained(net, path)
    name = 'layers.2.blocks.1.modulation.focal_layers.1.0.weight'
    torch.testing.assert_close(
        net.state_dict()[name], source.state_dict()[name][..., 1:-1, 1:-1], rtol=0, atol=0
    )


def test_added_levels_have_zero_gates_and_the_global_gate_stays_last(saved):
    source, path = saved
    net = small(focal_levels=[3, 2, 4, 2], focal_windows=5)
    report = load_pretrained(net, path)
    assert report.levels == {'2 to 3': 1, '2 to 4': 2}
    old = source.layers[2].blocks[0].modulation.f
    new = net.layers[2].blocks[0].modulation.f
    dim = old.in_features
    for a, b in ((old.weight, new.weight), (old.bias, new.bias)):
        torch.testing.assert_close(b[: 2 * dim + 2], a[: 2 * dim + 2], rtol=0, atol=0)
        assert not b[2 * dim + 2 : -1].any()
        torch.testing.assert_close(b[-1], a[-1], rtol=0, atol=0)


def test_added_levels_change_the_global_context_only(saved):
    """With the global gate at zero as well, nothing is left that could differ."""
    source, path = saved
    for block in [b for stage in source.layers for b in stage.blocks]:
        torch.nn.init.zeros_(block.modulation.f.weight[-1].data)
        torch.nn.init.zeros_(block.modulation.f.bias[-1].data)
    torch.save(classifier_state(source), path)
    net = small(focal_levels=4)
    load_pretrained(net, path)
    x = torch.randn(1, 3, 64, 64)
    for out, expected in zip(features(net, x), features(source, x), strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_removing_levels_is_refused(saved):
    _, path = saved
    with pytest.raises(
        CheckpointError, match=r'2 focal levels .* the model has 1.*focal_levels=2.*--levels 2'
    ):
        load_pretrained(small(focal_levels=[2, 1, 2, 2]), path)


@pytest.mark.parametrize('prefix', [None, 'backbone', 'backbone.'])
def test_one_backbone_out_of_a_detector(tmp_path, prefix):
    source = small()
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    state['neck.lateral_convs.0.conv.weight'] = torch.randn(2, 2)
    torch.save({'meta': {'epoch': 3}, 'state_dict': state}, tmp_path / 'detector.pth')
    net = small()
    load_pretrained(net, tmp_path / 'detector.pth', prefix=prefix)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'teacher'])
@pytest.mark.parametrize('prefix', ['', 'module.', 'encoder.', 'visual.', 'module.backbone.'])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    source = small()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: state}, tmp_path / 'wrapped.pth')
    net = small()
    load_pretrained(net, tmp_path / 'wrapped.pth')
    assert all(
        torch.equal(value, net.state_dict()[key]) for key, value in source.state_dict().items()
    )


def test_half_precision_and_the_old_file_format(tmp_path):
    source = small()
    torch.save(
        source.half().state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False
    )
    net = small()
    load_pretrained(net, tmp_path / 'old.pth')
    assert net.norm0.weight.dtype == torch.float32
    torch.testing.assert_close(net.norm0.weight, source.norm0.weight.float())


def test_loads_inside_an_mmdet_detector(saved):
    """The detector's own init_weights must not touch what the backbone loaded."""
    from mmdet.registry import MODELS

    source, path = saved
    model = MODELS.build(
        Config(
            dict(
                type='SingleStageDetector',
                backbone=dict(
                    type='FocalNet', **SMALL, out_indices=(1, 2, 3), init_cfg=pretrained(path)
                ),
                neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=8, num_outs=3),
                bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8),
            )
        )
    )
    model.init_weights()
    key = 'layers.2.blocks.1.modulation.f.weight'
    assert torch.equal(model.backbone.state_dict()[key], source.state_dict()[key])
    assert model.backbone.is_init


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(embed_dim=16), r'embed_dim is 8 in the checkpoint and 16 in the model'),
        (dict(depths=(1, 1, 3, 1)), r'depths is \[1, 1, 2, 1\] in the checkpoint'),
        (dict(use_conv_embed=True), r'use_conv_embed is False in the checkpoint and True'),
        (dict(use_layerscale=True), r'use_layerscale is False'),
        (dict(use_postln_in_modulation=True), r'use_postln_in_modulation is False'),
        (dict(in_chans=2), r'has 3 input channels but the model has 2'),
        (dict(depths=(1, 1)), r'depths is'),
    ],
)
def test_another_architecture_is_refused(saved, model, message):
    _, path = saved
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(small(**model), path)
    assert path.name in str(error.value)


def mutated(state, **changes):
    state = dict(state)
    for key, value in changes.items():
        key = key.replace('__', '.')
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'extra__weight': torch.ones(1)}, r'unexpected keys: extra.weight'),
        ({'layers__0__blocks__0__mlp__fc1__bias': None}, r'missing keys: layers.0.blocks.0.mlp'),
        ({'layers__0__blocks__0__mlp__fc1__bias': torch.ones(3)}, r'fc1.bias \(3,\) for \(32,\)'),
        ({'patch_embed__proj__weight': None}, r'holds no FocalNet'),
    ],
)
def test_what_is_not_understood_is_an_error(saved, changes, message):
    source, path = saved
    torch.save(mutated(classifier_state(source), **changes), path)
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(net, path)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_two_backbones_in_one_file_need_a_prefix(tmp_path):
    state = small().state_dict()
    both = {f'{prefix}.{k}': v for prefix in ('student', 'ema') for k, v in state.items()}
    torch.save(both, tmp_path / 'two.pth')
    with pytest.raises(
        CheckpointError, match=r"several FocalNets: choose by prefix= \(--prefix\).*'ema.'"
    ):
        load_pretrained(small(), tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match=r"no FocalNet under prefix 'teacher.'"):
        load_pretrained(small(), tmp_path / 'two.pth', prefix='teacher')
    load_pretrained(small(), tmp_path / 'two.pth', prefix='ema')


def test_truncated_file(saved):
    _, path = saved
    content = path.read_bytes()
    for length in (0, 3, 700, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r'truncated'):
            read_checkpoint(path)


@pytest.mark.parametrize(
    'content', [b'\n <!DOCTYPE html><html>moved</html>', b'<html></html>', b'\xef\xbb\xbf<html>']
)
def test_html_page(tmp_path, content):
    (tmp_path / 'page.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=r'page.pth is a web page'):
        read_checkpoint(tmp_path / 'page.pth')


@pytest.mark.parametrize('content', [b'not a checkpoint', b'\x80\x04K\x01.', bytes(5000)])
def test_some_other_file(tmp_path, content):
    (tmp_path / 'other.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=r'other.pth'):
        read_checkpoint(tmp_path / 'other.pth')


def test_a_file_without_a_state_dict(tmp_path):
    torch.save({'epoch': 3, 'lr': 0.1}, tmp_path / 'log.pth')
    with pytest.raises(CheckpointError, match=r'not plain tensors \(epoch, lr\)'):
        read_checkpoint(tmp_path / 'log.pth')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match=r'holds list'):
        read_checkpoint(tmp_path / 'list.pth')


@pytest.mark.parametrize('zipped', [True, False])
def test_damaged_bytes_are_one_sentence(tmp_path, zipped):
    path = tmp_path / 'damaged.pth'
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    random.seed(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(20):
            # Mostly the pickle at the start, where the structure is.
            damaged[random.randrange(min(len(damaged), 20000))] = random.randrange(256)
        path.write_bytes(damaged)
        try:
            load_pretrained(small(), path)
        except CheckpointError as error:
            assert '\n' not in str(error)
            assert 'damaged.pth' in str(error)
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        (3, torch.ones(1), r'not plain tensors \(3\)'),
        ('x', torch.ones(2, 2).to_sparse(), r'not plain tensors \(x\)'),
        ('x', torch.empty(2, device='meta'), r'not plain tensors \(x\)'),
        ('patch_embed.proj.weight', torch.ones(()), r'shape \(\) where 4 dimensions'),
        ('layers.0.blocks.0.modulation.f.weight', torch.ones(3), r'where 2 dimensions'),
        ('layers.x.blocks.0.modulation.f.weight', torch.ones(3), r'unexpected keys: layers.x'),
        ('a.modulation.f.weight', torch.ones(3), r'unexpected keys: a.modulation'),
    ],
)
def test_odd_entries(saved, key, value, message):
    source, path = saved
    torch.save({**classifier_state(source), key: value}, path)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(small(), path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_pickled_code_is_refused_and_never_run(tmp_path):
    mark = tmp_path / 'ran'
    torch.save({'model': small().state_dict(), 'config': Bomb(mark)}, tmp_path / 'bomb.pth')
    with pytest.raises(CheckpointError, match=r'bomb.pth holds a Python object .*open'):
        read_checkpoint(tmp_path / 'bomb.pth')
    assert not mark.exists()


@pytest.mark.parametrize(
    'source', ['~nouser-of-this/x.pth', 'x' * 5000 + '.pth', 'http://[bad/x.pth']
)
def test_sources_that_cannot_be_looked_for(source):
    with pytest.raises(CheckpointError, match=r'cannot be looked for \(.*\): give') as error:
        fetch(source)
    assert '\n' not in str(error.value)


def test_two_state_dicts_are_not_chosen_from(saved):
    source, path = saved
    state = classifier_state(source)
    torch.save({'state_dict': state, 'model': state}, path)
    with pytest.raises(CheckpointError, match=r'several state dicts \(state_dict, model\): save'):
        read_checkpoint(path)
    torch.save({'model': {'depth': 3}, 'teacher': state}, path)
    assert read_checkpoint(path).keys() == state.keys()
    torch.save({'state_dict': {}}, path)
    with pytest.raises(CheckpointError, match=r'focalnet_small.pth is empty'):
        read_checkpoint(path)


def test_missing_file():
    for nothing in (None, 3):
        with pytest.raises(CheckpointError, match=r'The checkpoint is'):
            fetch(nothing)
    with pytest.raises(CheckpointError, match=r"no checkpoint file 'nowhere/none.pth'"):
        fetch('nowhere/none.pth')


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (dict(type='Xavier', layer='Linear'), r"init_cfg=None or dict\(type='Pretrained'"),
        ([dict(type='Pretrained', checkpoint='x')], r'init_cfg=None or dict'),
        (dict(type='Pretrained'), r'takes checkpoint= and prefix='),
        (dict(type='Pretrained', checkpoint='x', strict=False), r'takes checkpoint= and prefix='),
    ],
)
def test_init_cfg_of_another_kind(init_cfg, message):
    with pytest.raises(ValueError, match=message):
        FocalNet(**SMALL, init_cfg=init_cfg).init_weights()


def test_initialising_twice_keeps_the_loaded_weights(saved):
    source, path = saved
    net = FocalNet(**SMALL, init_cfg=pretrained(path))
    net.init_weights()
    net.init_weights()
    key = 'patch_embed.proj.weight'
    assert torch.equal(net.state_dict()[key], source.state_dict()[key])


@pytest.mark.parametrize('mixer', sorted(set(MIXERS) - {'focal_modulation'}))
def test_a_model_with_another_mixer_is_named_even_where_loading_is_asked_for_directly(saved, mixer):
    _, path = saved
    with pytest.raises(CheckpointError, match=r'mixer|focal levels|does not fit') as error:
        load_pretrained(small(mixer=mixer), path)
    assert str(path) in str(error.value)
