"""Convert checkpoints: complete detectors, windows, levels, both tools, bad input, safe writing."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_focalnet import LARGE, SMALL, classifier_state, small

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from mmfocalnet.checkpoints.layouts import select_network
from mmfocalnet.conversion.architecture import _ratio, deduce
from mmfocalnet.conversion.convert import Changes, convert, inspect_checkpoint
from mmfocalnet.models import load_pretrained

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(tmp_path):
    """A classification file of the release, and its state dict."""
    state = classifier_state(small())
    torch.save({'model': state}, tmp_path / 'release.pth')
    return tmp_path / 'release.pth', state


# --- complete detectors of 2022 ----------------------------------------------------------------


def expand(*templates):
    """Keys of templates such as 'fc.{0..2}.{weight,bias}'."""
    for template in templates:
        parts = re.split(r'\{(.*?)\}', template)
        for i in range(1, len(parts), 2):
            bounds = re.fullmatch(r'(\d)\.\.(\d)', parts[i])
            parts[i] = range(int(bounds[1]), int(bounds[2]) + 1) if bounds else parts[i].split(',')
        choices = [[part] if i % 2 == 0 else map(str, part) for i, part in enumerate(parts)]
        yield from map(''.join, itertools.product(*choices))


BN = '{weight,bias,running_mean,running_var,num_batches_tracked}'
FPN = 'neck.{lateral_convs,fpn_convs}.{0..3}.conv.{weight,bias}'
RPN = 'rpn_head.{rpn_conv,rpn_cls,rpn_reg}.{weight,bias}'
DII = 'roi_head.bbox_head.{0..5}.'
# Keys of neck and heads in mmdet 2.11 and mmseg 0.11, which the release's dense code uses. Those
# of mmdet 3 and mmseg 1 are the same ("The model checkpoint
# does not need to be upgraded", open-mmlab/mmdetection#9779).
KEYS_2022 = {
    'mask_rcnn/focalnet_t_1x': [
        FPN,
        RPN,
        'roi_head.bbox_head.{shared_fcs.0,shared_fcs.1,fc_cls,fc_reg}.{weight,bias}',
        'roi_head.mask_head.convs.{0..3}.conv.{weight,bias}',
        'roi_head.mask_head.{upsample,conv_logits}.{weight,bias}',
    ],
    'cascade_rcnn/focalnet_t_3x': [
        FPN,
        RPN,
        'roi_head.bbox_head.{0..2}.{shared_fcs.0,fc_cls,fc_reg}.{weight,bias}',
        'roi_head.bbox_head.{0..2}.shared_convs.{0..3}.conv.weight',
        f'roi_head.bbox_head.{{0..2}}.shared_convs.{{0..3}}.bn.{BN}',
        'roi_head.mask_head.{0..2}.convs.{0..3}.conv.{weight,bias}',
        'roi_head.mask_head.{0..2}.{upsample,conv_logits}.{weight,bias}',
    ],
    'atss/focalnet_t_3x': [
        'neck.lateral_convs.{0..2}.conv.{weight,bias}',
        'neck.fpn_convs.{0..4}.conv.{weight,bias}',
        'bbox_head.{cls_convs,reg_convs}.{0..3}.{conv.weight,gn.weight,gn.bias}',
        'bbox_head.{atss_cls,atss_reg,atss_centerness}.{weight,bias}',
        'bbox_head.scales.{0..4}.scale',
    ],
    'sparse_rcnn/focalnet_t_3x': [
        FPN,
        'rpn_head.{init_proposal_bboxes,init_proposal_features}.weight',
        DII + 'attention.attn.{in_proj_weight,in_proj_bias,out_proj.weight,out_proj.bias}',
        DII + '{attention_norm,instance_interactive_conv_norm,ffn_norm}.{weight,bias}',
        DII + 'instance_interactive_conv.{dynamic_layer,fc_layer}.{weight,bias}',
        DII + 'instance_interactive_conv.{norm_in,norm_out,fc_norm}.{weight,bias}',
        DII + 'ffn.layers.{0.0,1}.{weight,bias}',
        DII + '{cls_fcs.0,reg_fcs.0,reg_fcs.3,reg_fcs.6}.weight',
        DII + '{cls_fcs.1,reg_fcs.1,reg_fcs.4,reg_fcs.7}.{weight,bias}',
        DII + '{fc_cls,fc_reg}.{weight,bias}',
    ],
    'upernet/focalnet_t_160k_ade20k': [
        '{decode_head,auxiliary_head}.conv_seg.{weight,bias}',
        'decode_head.psp_modules.{0..3}.1.conv.weight',
        f'decode_head.psp_modules.{{0..3}}.1.bn.{BN}',
        'decode_head.{lateral_convs.,fpn_convs.}{0..2}.conv.weight',
        f'decode_head.{{lateral_convs.,fpn_convs.}}{{0..2}}.bn.{BN}',
        'decode_head.{bottleneck,fpn_bottleneck}.conv.weight',
        f'decode_head.{{bottleneck,fpn_bottleneck}}.bn.{BN}',
        'auxiliary_head.convs.0.conv.weight',
        f'auxiliary_head.convs.0.bn.{BN}',
    ],
}


def narrow(node):
    """Reduce the width of a config's model, in place."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == 'backbone':
            value.update(embed_dim=8, depths=[1, 1, 2, 1], init_cfg=None)
        elif key == 'in_channels' and isinstance(value, list):
            node[key] = [channels // 12 for channels in value]
        elif 'channel' in str(key) and isinstance(value, int) and value >= 256:
            node[key] = 32
        elif isinstance(value, (dict, list)):
            narrow(value)


def build(name, windows=None):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    narrow(cfg.model)
    if windows:
        cfg.model.backbone.focal_windows = windows
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model), cfg.model.backbone


def saved_by_mmcv(model, backbone, path):
    """Save a checkpoint like mmcv 1: state dict, optimizer, text of the config."""
    state = {
        key: torch.randn(value.shape) if value.is_floating_point() else value + 3
        for key, value in model.state_dict().items()
    }
    text = f'model = dict(backbone=dict(type="FocalNet", embed_dim=8))\nscale = {backbone!r}'
    meta = dict(mmdet_version='2.11.0+a', config=text, CLASSES=('cat', 'dog'), epoch=36)
    optimizer = dict(state={0: dict(step=3, exp_avg=torch.ones(2))}, param_groups=[dict(lr=1e-4)])
    torch.save({'meta': meta, 'state_dict': state, 'optimizer': optimizer}, path)
    return state


@pytest.mark.parametrize('name', KEYS_2022)
def test_a_complete_detector_of_2022_loads_into_our_config(tmp_path, name):
    old, backbone = build(name, windows=[3, 3, 5, 3])
    state = saved_by_mmcv(old, backbone, tmp_path / 'old.pth')
    assert {key for key in state if not key.startswith('backbone.')} == set(
        expand(*KEYS_2022[name])
    )
    model, backbone = build(name)
    found = inspect_checkpoint(tmp_path / 'old.pth')
    assert found.network.source == "the 2022 release's mmdet 2.11.0+a"
    assert found.network.settings == dict(use_postln=False, normalize_modulator=False)
    convert(found, tmp_path / 'new.pth', 'ours', Changes(windows=backbone.focal_windows))
    content = torch.load(tmp_path / 'new.pth', weights_only=True)
    model.load_state_dict(content['state_dict'], strict=True)
    assert content['meta']['CLASSES'] == ('cat', 'dog')
    for key, value in content['state_dict'].items():
        expected = state[key]
        margin = (value.shape[-1] - expected.shape[-1]) // 2 if 'focal_layers' in key else 0
        if margin:
            value = value[..., margin:-margin, margin:-margin]
        assert torch.equal(value, expected), key


def test_a_prefix_selects_one_backbone(tmp_path):
    state = {
        **{f'student.backbone.{k}': v for k, v in small().state_dict().items()},
        **{f'ema.backbone.{k}': v for k, v in small().state_dict().items()},
        'neck.weight': torch.ones(1),
    }
    torch.save(state, tmp_path / 'two.pth')
    convert(inspect_checkpoint(tmp_path / 'two.pth', 'ema.backbone'), tmp_path / 'new.pth', 'ours')
    written = open_checkpoint(tmp_path / 'new.pth').state
    assert written.keys() == small().state_dict().keys()
    assert torch.equal(written['norm0.weight'], state['ema.backbone.norm0.weight'])


@pytest.mark.parametrize('to', ['timm', 'transformers'])
def test_keys_that_are_left_out_are_reported(tmp_path, to):
    state = {f'backbone.{k}': v for k, v in small().state_dict().items()}
    torch.save({**state, 'neck.weight': torch.ones(1)}, tmp_path / 'det.pth')
    out = tmp_path / ('out' if to == 'transformers' else 'out.pth')
    report = convert(inspect_checkpoint(tmp_path / 'det.pth'), out, to)
    assert re.search('left out: neck.weight, norm0.weight, .* norm3.bias$', report)
    assert not any('norm3' in key for key in open_checkpoint(out).state)


# --- windows, levels, metadata --------------------------------------------------------------


def test_windows_and_levels(saved, tmp_path, tool):
    path, state = saved
    flags = ['--windows', '9,9,5,3', '--levels', 3, '--keep-function']
    code, out, _ = tool('convert_checkpoint', path, tmp_path / 'new.pth', '--to', 'ours', *flags)
    assert code == 0
    assert '3x3 to 5x5' in out and 'outputs unchanged' in out
    new, old = small(focal_levels=3, focal_windows=[9, 9, 5, 3]), small()
    load_pretrained(new, tmp_path / 'new.pth')
    load_pretrained(old, path)
    new.load_state_dict({k: v for k, v in old.state_dict().items() if 'norm' in k}, strict=False)
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        for a, b in zip(new.eval()(x), old.eval()(x), strict=True):
            assert (a - b).abs().max() / b.abs().max() < 1e-5
    written = open_checkpoint(tmp_path / 'new.pth').state
    assert torch.equal(written['head.weight'], state['head.weight'])


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--windows', '9,9'], r'--windows'),
        (['--windows', '4'], r'focal_window.* 4'),
        (['--levels', '1'], r'2 focal levels'),
        (['--keep-function'], r'--levels'),
        (['--keep-function', '--levels', 2], r'--levels'),
    ],
)
def test_invalid_windows_and_levels(saved, tmp_path, tool, flags, message):
    code, _, error = tool(
        'convert_checkpoint', saved[0], tmp_path / 'new.pth', '--to', 'ours', *flags
    )
    assert code == 2
    assert re.search(f'release.pth.*{message}|{message}.*release.pth', error)
    assert not (tmp_path / 'new.pth').exists()


def test_assumed_settings_stay_assumed_after_a_conversion(tmp_path):
    torch.save(small(**LARGE).state_dict(), tmp_path / 'net.pth')
    convert(inspect_checkpoint(tmp_path / 'net.pth'), tmp_path / 'new.pth', 'ours')
    found = inspect_checkpoint(tmp_path / 'new.pth')
    assert found.architecture.settings['use_postln'] is True
    assert found.architecture.origins['use_postln'].startswith('assumed')
    convert(
        inspect_checkpoint(tmp_path / 'net.pth', given=dict(use_postln=False)),
        tmp_path / 'new.pth',
        'ours',
    )
    assert inspect_checkpoint(tmp_path / 'new.pth').network.settings == dict(use_postln=False)


@pytest.mark.parametrize(
    ('backbone', 'expected'),
    [
        ("dict(type='FocalNet', embed_dim=8)", (False, False)),
        ("dict(type='mmdet.FocalNet', arch='large_fl4')", (True, True)),
        ("dict(type='FocalNet', arch='large_fl4', normalize_modulator=False)", (True, False)),
        ("dict(type='FocalNet', use_postln=True, arch=None)", (True, False)),
        ("dict(type='FocalNet', arch='of_later')", None),
        ("dict(type='ResNet')", None),
        ('dict(', None),
        ("__import__('os').abort()", None),
    ],
)
def test_settings_from_the_training_config(tmp_path, backbone, expected):
    meta = dict(mmengine_version='0.10.7', cfg=f'x = 1\nmodel = dict(backbone={backbone})\n')
    torch.save({'meta': meta, 'state_dict': small(**LARGE).state_dict()}, tmp_path / 'epoch.pth')
    assert inspect_checkpoint(tmp_path / 'epoch.pth').network.settings == (
        dict(zip(('use_postln', 'normalize_modulator'), expected, strict=True)) if expected else {}
    )


# --- inspecting -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('settings', 'pasted'),
    [
        (dict(arch='tiny_srf'), dict(arch='tiny_srf')),
        (
            dict(arch='tiny_lrf', focal_windows=[11, 9, 9, 7]),
            dict(arch='tiny_lrf', focal_windows=[11, 9, 9, 7]),
        ),
        (dict(arch='large_fl4'), dict(arch='large_fl4')),
        (dict(arch='huge_fl3', in_chans=4), dict(arch='huge_fl3', in_chans=4)),
        (dict(arch='base_iso'), dict(arch='base_iso')),
        (
            SMALL,
            dict(
                embed_dim=8,
                depths=[1, 1, 2, 1],
                focal_levels=[2, 2, 2, 2],
                focal_windows=[3, 3, 3, 3],
            ),
        ),
        (
            dict(arch='tiny_srf', mlp_ratio=2, focal_factor=4, patch_norm=False),
            dict(arch='tiny_srf', mlp_ratio=2, focal_factor=4, patch_norm=False),
        ),
    ],
)
def test_the_architecture_is_deduced(settings, pasted):
    with torch.device('meta'):
        net = FocalNet(**settings)
    backbone = deduce(select_network(Checkpoint('net.pth', net.state_dict()))).backbone()
    assert backbone == pasted
    with torch.device('meta'):
        again = FocalNet(**backbone)
    assert str(again) == str(net)


def test_inspect_prints_a_backbone_to_paste(saved, tool):
    path, state = saved
    code, out, _ = tool('inspect_checkpoint', path)
    assert code == 0
    assert "source: the release's classification model" in out
    assert 'nearest: ' in out
    assert 'use_postln: False (assumed' in out
    assert f'parameters: {sum(v.numel() for v in state.values()) / 1e6:.3f} M' in out
    scope = {}
    exec(out[out.index('backbone = ') :], scope)
    model = MODELS.build(scope['backbone'])
    model.init_weights()
    key = 'layers.2.blocks.1.mlp.fc1.weight'
    assert torch.equal(model.state_dict()[key], state[key])


def test_flags_override_the_file(tmp_path, tool):
    torch.save(small(**LARGE).state_dict(), tmp_path / 'net.pth')
    flags = ['--no-use-postln', '--normalize-modulator']
    _, out, _ = tool('inspect_checkpoint', tmp_path / 'net.pth', *flags)
    assert 'use_postln: False (from the user)' in out
    assert 'normalize_modulator: True (from the user)' in out
    assert '    use_layerscale=True,\n' in out
    assert '    use_postln' not in out


# --- bad input ------------------------------------------------------------------------------


FC1_BIAS = 'layers.1.blocks.0.mlp.fc1.bias'


def rewritten(path, state, changes):
    """The file with some tensors replaced, or removed where None."""
    state = {**state, **changes}
    torch.save({'model': {k: v for k, v in state.items() if v is not None}}, path)
    return path


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({FC1_BIAS: torch.full((64,), torch.nan)}, rf'1 of \d+ tensors \({FC1_BIAS}\)'),
        (
            {f'x{i:02}': torch.ones(1) for i in range(12)},
            r'keys: x00, .* x09 and 2 more',
        ),
        ({FC1_BIAS: None}, f'missing keys: {FC1_BIAS}'),
        ({'patch_embed.proj.weight': torch.ones(3)}, r'patch_embed.proj.weight .*\(3,\)'),
    ],
)
def test_bad_weights_raise_one_line_and_write_nothing(saved, tmp_path, tool, changes, message):
    path = rewritten(*saved, changes)
    before = sorted(tmp_path.iterdir())
    code, out, error = tool('convert_checkpoint', path, tmp_path / 'new', '--to', 'transformers')
    assert (code, out) == (2, '')
    assert error.count('\n') == 1
    assert re.search(f'release.pth .*{message}', error)
    assert sorted(tmp_path.iterdir()) == before


def test_allow_nonfinite_converts_nan(saved, tmp_path, tool):
    bad = torch.full((64,), torch.nan)
    path = rewritten(*saved, {FC1_BIAS: bad})
    arguments = [path, tmp_path / 'new.pth', '--to', 'ours', '--allow-nonfinite']
    assert tool('convert_checkpoint', *arguments)[0] == 0
    assert open_checkpoint(tmp_path / 'new.pth').state[FC1_BIAS].isnan().all()


def test_a_url_without_network(tmp_path, monkeypatch, tool):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    code, _, error = tool('inspect_checkpoint', 'http://127.0.0.1:9/focalnet.pth')
    assert code == 2
    assert 'http://127.0.0.1:9/focalnet.pth' in error


def test_the_exit_code_of_a_process(tmp_path):
    command = [sys.executable, 'tools/inspect_checkpoint.py', str(tmp_path / 'none.pth')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.match(r'inspect_checkpoint\.py: .*none\.pth', done.stderr.splitlines()[-1])


# --- writing --------------------------------------------------------------------------------


@contextlib.contextmanager
def closed(folder):
    """A folder without write permission; root becomes another user meanwhile."""
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


OUTPUTS = [
    ('ours', 'new.pth'),
    ('ours', 'new.safetensors'),
    ('timm', 'new.safetensors'),
    ('transformers', 'new'),
    ('release', 'new.pth'),
]


@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='needs POSIX users')
@pytest.mark.parametrize(('to', 'name'), OUTPUTS)
def test_no_write_permission(saved, tmp_path, to, name):
    found = inspect_checkpoint(saved[0])
    folder = tmp_path / 'closed'
    with (
        pytest.raises(CheckpointError, match=r'closed/new.*[Pp]ermission') as error,
        closed(folder),
    ):
        convert(found, folder / name, to)
    assert '\n' not in str(error.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(('to', 'name'), OUTPUTS)
def test_partial_files_are_removed(saved, tmp_path, monkeypatch, to, name):
    (tmp_path / 'out').mkdir()
    found = inspect_checkpoint(saved[0])

    def fail(*_):
        raise OSError(28, 'Disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(CheckpointError, match='Disk full'):
        convert(found, tmp_path / 'out' / name, to)
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize(
    ('to', 'name'),
    [('ours', 'new.bin'), ('ours', 'new'), ('release', 'x.safetensors'), ('transformers', 'x.pth')],
)
def test_unsupported_suffixes_are_refused(saved, tmp_path, to, name):
    with pytest.raises(CheckpointError, match=rf'--to {to} .*{name}'):
        convert(inspect_checkpoint(saved[0]), tmp_path / name, to)


def test_a_folder_with_other_files_is_kept(saved, tmp_path):
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used/mine').touch()
    with pytest.raises(CheckpointError, match=r'used .*empty'):
        convert(inspect_checkpoint(saved[0]), tmp_path / 'used', 'transformers')
    assert [path.name for path in (tmp_path / 'used').iterdir()] == ['mine']


def test_source_and_destination_may_be_the_same_file(saved):
    path, state = saved
    convert(inspect_checkpoint(path), path, 'ours')
    written = open_checkpoint(path).state
    assert all(torch.equal(written[key], value) for key, value in state.items())


@pytest.mark.parametrize('name', ['new.pth', 'new.safetensors'])
def test_written_files_have_default_permissions(saved, tmp_path, name):
    convert(inspect_checkpoint(saved[0]), tmp_path / name, 'ours')
    (tmp_path / 'plain').touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_writing_without_safetensors(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(CheckpointError, match=r'mmfocalnet\[hf\]'):
        convert(inspect_checkpoint(saved[0]), tmp_path / 'new.safetensors', 'ours')
    convert(inspect_checkpoint(saved[0]), tmp_path / 'new.pth', 'ours')


# --- files with small defects ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'head.weight': torch.ones(10, 7)}, r'head.weight \(10, 7\), expected \(10, 64\)'),
        ({'head.bias': torch.ones(4)}, r'head.bias \(4,\), expected \(10,\)'),
        ({'head.bias': None}, r'head.bias missing, expected \(10,\)'),
        ({'head.weight': None}, r'head.weight missing, expected \(10, 64\)'),
        ({'norm.weight': None}, r'norm.weight missing, expected \(64,\)'),
        ({'norm.bias': torch.ones(8)}, r'norm.bias \(8,\), expected \(64,\)'),
        ({'norm.weight': None, 'norm.bias': None}, r'norm.weight missing.* norm.bias missing'),
        pytest.param(
            {'layers.0.blocks.0.mlp.fc1.weight': torch.ones(32, 8).to(torch.float8_e4m3fn)},
            r'mlp.fc1.weight torch.float8_e4m3fn',
            marks=pytest.mark.skipif(torch.__version__ < '2.2', reason='no float8 in files'),
        ),
        (
            {'layers.2.blocks.1.norm1.bias': torch.ones(32, dtype=torch.int64)},
            r'layers.2.blocks.1.norm1.bias torch.int64',
        ),
        ({'layers.0.blocks.0.mlp.fc1.weight': torch.ones(4, 0)}, r'mlp.fc1.weight .*\(4, 0\)'),
        (
            {'layers.0.blocks.0.modulation.focal_layers.0.0.weight': torch.ones(8, 1, 4, 4)},
            r'focal_window',
        ),
    ],
)
def test_wrong_shapes_and_types_are_refused(saved, tmp_path, changes, message):
    path = rewritten(*saved, changes)
    with pytest.raises(CheckpointError, match=f'release.pth .*{message}') as error:
        convert(inspect_checkpoint(path), tmp_path / 'new.pth', 'ours')
    assert '\n' not in str(error.value)


def test_an_incomplete_output_norm_is_refused(tmp_path):
    state = small().state_dict()
    del state['norm0.bias'], state['norm2.weight']
    torch.save(state, tmp_path / 'dense.pth')
    with pytest.raises(CheckpointError, match=r'missing keys: norm0.bias, norm2.weight'):
        convert(inspect_checkpoint(tmp_path / 'dense.pth'), tmp_path / 'new.pth', 'ours')


@pytest.mark.parametrize('assumed', [3, None])
def test_invalid_converter_metadata_are_ignored(tmp_path, assumed):
    ours = dict(backbone=dict(use_postln=True), assumed=assumed)
    content = dict(meta=dict(mmfocalnet=ours), state_dict=small(**LARGE).state_dict())
    torch.save(content, tmp_path / 'net.pth')
    assert inspect_checkpoint(tmp_path / 'net.pth').network.settings == dict(use_postln=True)


@pytest.mark.parametrize(
    ('gone', 'message'),
    [
        ('layers.1.', r'stage 1'),
        ('layers.0.', r'stage 0'),
        ('layers.2.blocks.0.', r'block 0 of stage 2'),
    ],
)
def test_missing_stages_and_blocks_are_refused(saved, tool, gone, message):
    path, state = saved
    torch.save({key: v for key, v in state.items() if not key.startswith(gone)}, path)
    code, out, error = tool('inspect_checkpoint', path)
    assert (code, out) == (2, '')
    assert re.search(f'release.pth .*{message}', error)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'extra': torch.ones(1)}, r'unexpected keys: extra'),
        ({FC1_BIAS: None}, f'missing keys: {FC1_BIAS}'),
        ({'norm.bias': None, 'patch_embed.norm.bias': torch.full((8,), torch.nan)}, r'NaN'),
    ],
)
def test_inspect_reports_why_a_network_does_not_load(saved, tool, changes, message):
    code, out, _ = tool('inspect_checkpoint', rewritten(*saved, changes))
    assert code == 0
    assert re.search(f'\ndoes not load: .*release.pth .*{message}', out)
    assert 'backbone = ' not in out


def test_inspect_prints_the_output_stages_of_a_dense_file(tmp_path, tool):
    net = small(out_indices=(1, 2, 3))
    torch.save(net.state_dict(), tmp_path / 'atss.pth')
    _, out, _ = tool('inspect_checkpoint', tmp_path / 'atss.pth')
    assert '    out_indices=(1, 2, 3),\n' in out
    torch.save(small().state_dict(), tmp_path / 'all.pth')
    assert 'out_indices' not in tool('inspect_checkpoint', tmp_path / 'all.pth')[1]


@pytest.mark.parametrize(('ratio', 'found'), [(3.3, 3.3), (0.7, 0.7), (2, 2), (2.718, 2.7)])
def test_mlp_ratio_gives_the_hidden_width_of_every_stage(tmp_path, ratio, found):
    state = small(mlp_ratio=ratio).state_dict()
    torch.save(state, tmp_path / 'net.pth')
    inspection = inspect_checkpoint(tmp_path / 'net.pth')
    assert inspection.architecture.settings['mlp_ratio'] == pytest.approx(found, abs=0.02)
    convert(inspection, tmp_path / 'new.pth', 'ours')


def test_mlp_ratio_of_many_hidden_widths():
    for width in (1, 7, 8, 49, 96):
        for hidden in range(1, 400):
            widths = {width * 2**i: int(width * 2**i * hidden / 91) for i in range(4)}
            assert {c: int(c * _ratio(widths)) for c in widths} == widths


# --- content of written files ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('to', 'name'), [('ours', 'a.pth'), ('ours', 'a.safetensors'), ('transformers', 'a')]
)
def test_shared_and_sliced_storages_are_written_compactly(saved, tmp_path, to, name):
    path, state = saved
    large = torch.randn(3_000_000)
    key = 'layers.0.blocks.0.mlp.fc1.bias'
    state[key] = large[5:37]
    state['layers.0.blocks.0.norm2.bias'] = state['layers.0.blocks.0.norm1.bias']
    torch.save({'model': state}, path)
    convert(inspect_checkpoint(path), tmp_path / name, to)
    written = tmp_path / name / 'model.safetensors' if to == 'transformers' else tmp_path / name
    assert written.stat().st_size < 4 * large.numel()
    load_pretrained(small(), tmp_path / name)
    convert(inspect_checkpoint(tmp_path / name), tmp_path / 'back.pth', 'release')
    assert torch.equal(open_checkpoint(tmp_path / 'back.pth').state[key], state[key])


def test_errors_of_pytorch_when_writing(saved, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('unexpected type')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(CheckpointError, match=r'new\.pth .*unexpected type'):
        convert(inspect_checkpoint(saved[0]), tmp_path / 'new.pth', 'ours')


def test_keep_function_stores_float16_as_float32(saved, tmp_path):
    path, state = saved
    half = {key: value.half() for key, value in state.items()}
    torch.save({'model': half}, path)
    changes = Changes(levels=3, keep_function=True)
    report = convert(inspect_checkpoint(path), tmp_path / 'new', 'transformers', changes)
    assert 'inference only' in report and 'float32' in report
    written = open_checkpoint(tmp_path / 'new').state
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert 'inference' not in convert(
        inspect_checkpoint(path), tmp_path / 'b', 'transformers', Changes((9,))
    )
    assert open_checkpoint(tmp_path / 'b').state['classifier.bias'].dtype == torch.float16


@pytest.mark.parametrize(
    ('name', 'quoted'),
    [
        ('.', "'.'"),
        ('/', "'/'"),
        ('', "'.'"),
        ('..', "'..'"),
        ('~nouser-of-this/x', '~nouser-of-this/x'),
        ('x' * 300, 'x' * 300),
    ],
)
def test_invalid_destinations(saved, monkeypatch, tmp_path, name, quoted):
    found = inspect_checkpoint(saved[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(quoted)) as error:
        convert(found, name, 'transformers')
    assert '\n' not in str(error.value)


def test_class_names_of_transformers_are_kept(saved, tmp_path):
    path, _ = saved
    convert(inspect_checkpoint(path), tmp_path / 'a', 'transformers')
    config = json.loads((tmp_path / 'a/config.json').read_text())
    names = {str(i): f'animal {i}' for i in range(10)}
    labels = dict(id2label=names, label2id={name: int(i) for i, name in names.items()})
    (tmp_path / 'a/config.json').write_text(json.dumps(config | labels))
    assert 'left out' not in convert(
        inspect_checkpoint(tmp_path / 'a'), tmp_path / 'b', 'transformers'
    )
    config = json.loads((tmp_path / 'b/config.json').read_text())
    assert {key: config[key] for key in labels} == labels
    report = convert(inspect_checkpoint(tmp_path / 'a'), tmp_path / 'a.pth', 'ours')
    assert report.endswith('left out: id2label, label2id')
    (tmp_path / 'a/config.json').write_text(json.dumps(config | dict(id2label={'0': 'cat'})))
    report = convert(inspect_checkpoint(tmp_path / 'a'), tmp_path / 'c', 'transformers')
    assert report.endswith('left out: id2label, label2id')
    config = json.loads((tmp_path / 'c/config.json').read_text())
    assert config['id2label']['9'] == 'LABEL_9'
