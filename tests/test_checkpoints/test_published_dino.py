"""Files of published DINO detectors: recognized, renamed, with COCO's classes."""

import re
from argparse import Namespace

import published_dino
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from mmfocalnet.checkpoints import Checkpoint, CheckpointError, fit_checkpoint, open_checkpoint
from mmfocalnet.checkpoints.dino import (
    COCO_IDS,
    LABEL_EMBEDDING,
    Detector,
    class_names,
    find_detector,
    match_classes,
    to_mmdet,
)
from mmfocalnet.checkpoints.layouts import select_network
from mmfocalnet.conversion.architecture import deduce, find_config
from mmfocalnet.conversion.convert import Changes, convert, inspect_checkpoint
from mmfocalnet.models import FocalNet
from mmfocalnet.models.weight_checks import check_fits

FOCALNET_DINO, DETREX = 'focalnet_dino_fl4_5scale', 'detrex_fl3_4scale'
HEAD = 'bbox_head.cls_branches.0.weight'


@pytest.fixture(scope='module')
def states():
    """State dict and settings of each detector."""
    found = {name: published_dino.numbers(name) for name in published_dino.NAMES}
    return {name: (published_dino.weights(f), f['config']) for name, f in found.items()}


def save(state, path):
    """As the code bases do: settings, EMA and optimizer beside the weights."""
    content = dict(
        model=state,
        ema_model={key: value + 1 for key, value in state.items()},
        optimizer=dict(state={}, param_groups=[dict(lr=1e-4)]),
        args=Namespace(lr=1e-4, device='cuda', names=['a'], nested=dict(x=(1, 2)), none=None),
        epoch=3,
    )
    torch.save(content, path)
    return path


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_recognized(name, states):
    state, settings = states[name]
    detector = find_detector(state)
    assert detector.source == settings['source']
    assert detector.scales == settings['levels']
    assert detector.num_classes == settings['num_classes']
    assert detector.num_queries == settings['num_queries']
    assert find_detector({f'module.{key}': value for key, value in state.items()}) == detector


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_other_files_are_not(name, states):
    state, _ = states[name]
    assert find_detector(to_mmdet(state)) is None
    for part in ('backbone', 'class_embed.0', 'transformer.tgt_embed', 'transformer.level_embed'):
        left = {key: value for key, value in state.items() if not key.startswith(part)}
        assert find_detector(left) is None
    for key in ('class_embed.0.weight', 'class_embed.1.bias'):
        assert find_detector(dict(state, **{key: 3})) is None
    assert find_detector(dict(state, **{'class_embed.0.weight': torch.tensor(3)})) is None
    assert find_detector({1: 2}) is None


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_fills_the_model_of_our_config(name, states):
    state, settings = states[name]
    prefixed = {f'module.{key}': value for key, value in state.items()}
    model = published_dino.build(published_dino.config(settings))
    model.load_state_dict(to_mmdet(prefixed, keep_classes=True))  # strict


def test_91_logits_become_80_classes(states):
    state, _ = states[FOCALNET_DINO]
    every, coco = to_mmdet(state, keep_classes=True), to_mmdet(state)
    assert len(COCO_IDS) == len(coco[HEAD]) == 80
    assert (COCO_IDS[0], COCO_IDS[11], COCO_IDS[-1]) == (1, 13, 90)
    per_class = {key for key in every if every[key].shape != coco[key].shape}
    assert len(per_class) == 7 * 2 + 1
    for key in per_class:
        assert torch.equal(coco[key], every[key][list(COCO_IDS)])
    detector = find_detector(state)
    assert class_names(detector, coco)[:2] == ('person', 'bicycle')
    assert class_names(detector, every)[1:3] == ('person', 'bicycle')
    names = class_names(detector, every)[COCO_IDS[-1]], class_names(detector, coco)[-1]
    assert names == ('toothbrush', 'toothbrush')


def test_objects365_keeps_its_classes(states):
    state, _ = states[FOCALNET_DINO]
    more = dict(state)
    for key, value in state.items():
        if 'class_embed' in key or key == 'label_enc.weight':
            rows = 367 if key == 'label_enc.weight' else 366
            more[key] = torch.zeros(rows, *value.shape[1:])
    found = to_mmdet(more)
    names = class_names(find_detector(more), found)
    assert len(found[HEAD]) == len(found[LABEL_EMBEDDING]) == len(names) == 366
    assert names[:3] == ('unused', 'Person', 'Sneakers')


def test_91_classes_of_detrex_are_kept(states):
    """They are the classes of other data."""
    state, _ = states[DETREX]
    more = dict(state)
    for key, value in state.items():
        if 'class_embed' in key or key == 'label_enc.weight':
            more[key] = torch.zeros(91, *value.shape[1:])
    found = to_mmdet(more)
    assert len(found[HEAD]) == 91
    assert class_names(find_detector(more), found) == ()


def same_heads(state):
    """Set the copies of heads to the heads."""
    short = 'transformer.decoder.'
    return {k: state.get(k.removeprefix(short), v) for k, v in state.items()}


def test_unknown_numbers_of_classes_have_no_names():
    for source in ('FocalNet-DINO', 'detrex'):
        detector = Detector(source, 4, 7, 900)
        assert class_names(detector, {HEAD: torch.zeros(7, 4)}) == ()


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_copies_of_heads_must_be_equal(name, states):
    state, _ = states[name]
    key = 'transformer.decoder.class_embed.2.bias'
    assert key in state
    with pytest.raises(CheckpointError, match=r'net\.pth.*class_embed\.2\.bias'):
        to_mmdet(dict(state, **{key: state[key] + 1e-3}), name='net.pth')
    without = {k: v for k, v in state.items() if not k.startswith('transformer.decoder.class')}
    assert to_mmdet(without).keys() == to_mmdet(state).keys()


@pytest.mark.parametrize(
    ('key', 'part'),
    [
        ('transformer.encoder.layers.3.', 'encoder.layers'),
        ('transformer.encoder.layers.5.*norm', 'encoder.layers'),
        ('transformer.decoder.layers.0.', 'decoder.layers'),
        ('class_embed.5.', 'cls_branches'),
        ('bbox_embed.2.layers.1', 'reg_branches'),
    ],
)
@pytest.mark.parametrize('name', published_dino.NAMES)
def test_layers_must_be_complete(name, key, part, states):
    left = {k: v for k, v in states[name][0].items() if not re.match(key, k)}
    assert len(left) < len(states[name][0])
    with pytest.raises(CheckpointError, match=rf'net\.pth.*{part}'):
        to_mmdet(left, name='net.pth')


@pytest.mark.parametrize('key', ['class_embed.2.weight', 'class_embed.3.bias', 'label_enc.weight'])
@pytest.mark.parametrize('name', published_dino.NAMES)
def test_heads_of_different_numbers_of_classes(name, key, states):
    state = same_heads(dict(states[name][0], **{key: torch.zeros(40, 256)}))
    with pytest.raises(CheckpointError, match=r'net\.pth.*\(40, 256\)'):
        to_mmdet(state, name='net.pth')


@pytest.mark.parametrize('key', ['mask_head.weight', 'transformer.encoder.layers.0.norm9.bias'])
@pytest.mark.parametrize('name', published_dino.NAMES)
def test_unknown_keys(name, key, states):
    with pytest.raises(CheckpointError, match=f'net.pth.*{key}'):
        to_mmdet(dict(states[name][0], **{key: torch.zeros(3)}), name='net.pth')


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_mmengine_loads_the_file(name, states, tmp_path, loads):
    state, settings = states[name]
    path = str(save(state, tmp_path / 'net.pth'))
    model = published_dino.build(published_dino.config(settings, num_classes=80))
    content = load_checkpoint(model, path, strict=True)
    assert len(content['meta']['dataset_meta']['classes']) == 80
    for key, value in to_mmdet(state).items():
        assert torch.equal(model.state_dict()[key], value), key
    check_fits(model, path)
    assert loads['net.pth'] == 2


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_mmengine_finds_the_weights_as_the_converter_does(name, states, tmp_path):
    state, settings = states[name]
    model = published_dino.build(published_dino.config(settings, num_classes=80))
    for wrap in (
        lambda weights: weights,
        lambda weights: dict(state_dict=weights, meta={}),
        lambda weights: dict(model=dict(state_dict=weights), epoch=1),
    ):
        torch.save(wrap(state), tmp_path / 'net.pth')
        load_checkpoint(model, str(tmp_path / 'net.pth'), strict=True)
        assert inspect_checkpoint(tmp_path / 'net.pth').network.detector


@pytest.mark.parametrize('key', ['model', 'teacher'])
def test_mmengine_finds_other_weights_below_the_same_keys(key, tmp_path):
    """What is checked is what is loaded."""
    layer = torch.nn.Linear(2, 2)
    torch.save({key: layer.state_dict(), 'epoch': 1}, tmp_path / 'net.pth')
    model = torch.nn.Linear(2, 2)
    check_fits(model, str(tmp_path / 'net.pth'))
    load_checkpoint(model, str(tmp_path / 'net.pth'))
    assert torch.equal(model.weight, layer.weight)


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_converted_files_equal_what_mmengine_loads(name, states, tmp_path):
    state, settings = states[name]
    found = inspect_checkpoint(save(state, tmp_path / 'net.pth'))
    for keep in (False, True):
        report = convert(found, tmp_path / 'ours.pth', 'ours', Changes(keep_classes=keep))
        count = settings['num_classes'] if keep else 80
        assert f'{count} classes' in report
        written = open_checkpoint(tmp_path / 'ours.pth')
        expected = to_mmdet(state, keep)
        assert written.state.keys() == expected.keys()
        assert all(torch.equal(written.state[key], value) for key, value in expected.items())
        assert len(written.metadata['dataset_meta']['classes']) == count
        model = published_dino.build(published_dino.config(settings, num_classes=count))
        load_checkpoint(model, str(tmp_path / 'ours.pth'), strict=True)


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_the_modulator_is_normalized_as_in_the_source(name, states, tmp_path):
    state, settings = states[name]
    architecture = deduce(select_network(Checkpoint('net.pth', state)))
    assert architecture.origins['normalize_modulator'] == 'from the file'
    for key in published_dino.BACKBONE:
        if key not in ('out_indices', 'focal_levels', 'focal_windows'):
            assert architecture.settings[key] == settings[key], key


@pytest.mark.parametrize(
    ('source', 'arch', 'scales', 'classes', 'config'),
    [
        ('FocalNet-DINO', 'large_fl4', 5, 91, 'focalnet_l_fl4_5scale_12e'),
        ('FocalNet-DINO', 'large_fl4', 5, 366, 'focalnet_l_fl4_5scale_objects365'),
        ('FocalNet-DINO', 'large_fl3', 4, 91, 'focalnet_l_fl3_4scale_12e'),
        ('FocalNet-DINO', 'large_fl4', 5, 20, 'focalnet_l_fl4_5scale_12e'),
        ('FocalNet-DINO', 'large_fl3', 5, 91, None),
        ('detrex', 'large_fl3', 4, 80, 'detrex_focalnet_l_fl3_4scale_12e'),
        ('detrex', 'large_fl4', 4, 139, 'detrex_focalnet_l_fl4_4scale_12e'),
        ('detrex', 'small_lrf', 4, 91, 'detrex_focalnet_s_4scale_12e'),
        ('detrex', 'large_fl4', 5, 80, 'detrex_focalnet_l_fl4_5scale_12e'),
        ('detrex', 'tiny_lrf', 4, 80, 'detrex_focalnet_t_4scale_12e'),
        ('detrex', 'base_lrf', 4, 80, 'detrex_focalnet_b_4scale_12e'),
        ('detrex', 'tiny_srf', 4, 80, None),
        ('detrex', 'huge_fl3', 4, 80, None),
    ],
)
@pytest.mark.parametrize('queries', [900, 300])
def test_the_config_of_a_file(queries, source, arch, scales, classes, config):
    with torch.device('meta'):
        backbone = FocalNet(arch).state_dict()
    prefix, levels = ('backbone.0.', 'level_embed') if source != 'detrex' else ('backbone.', '')
    state = {prefix + key: value for key, value in backbone.items()}
    state[f'transformer.{levels or "level_embeds"}'] = torch.zeros(scales, 256)
    state['transformer.tgt_embed.weight'] = torch.zeros(queries, 256)
    state['class_embed.0.weight'] = torch.zeros(classes, 256)
    network = select_network(Checkpoint('net.pth', state))
    found = find_config(network.detector, deduce(network))
    if config is None:
        assert found is None
        return
    path, changes = found
    assert path == f'dino/{config}.py'
    cfg = Config.fromfile(published_dino.ROOT / 'configs' / path)
    cfg.merge_from_dict(changes)
    assert cfg.model.num_queries == queries
    kept = 80 if source == 'FocalNet-DINO' and classes == 91 else classes
    assert cfg.model.bbox_head.num_classes == kept


@pytest.mark.parametrize('name', published_dino.NAMES)
def test_the_backbone_alone(name, states, tmp_path):
    state, settings = states[name]
    path = save(dict(state, unknown=torch.zeros(2)), tmp_path / 'net.pth')
    arguments = {key: settings[key] for key in published_dino.BACKBONE}
    net = FocalNet(**arguments, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    net.init_weights()
    prefix = 'backbone.' if settings['source'] == 'detrex' else 'backbone.0.'
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[prefix + key]), key


@pytest.mark.parametrize('prefix', ['backbone.', 'module.backbone.', 'model.backbone.'])
def test_the_backbone_of_other_detectors(prefix):
    """Relation-DETR, Salience-DETR, X-Decoder L and SEEM L: FocalNet-L with four levels."""
    with torch.device('meta'):
        net = FocalNet('large_fl4')
    others = {'sem_seg_head.predictor.query_embed.weight': torch.zeros(3, 4)}
    state = {prefix + key: value for key, value in net.state_dict().items()} | others
    network = select_network(Checkpoint('net.pth', state))
    assert network.state.keys() == net.state_dict().keys()
    assert network.detector is None and network.others == list(others)
    architecture = deduce(network)
    assert architecture.backbone() == dict(arch='large_fl4')
    assert architecture.settings['normalize_modulator']


def test_the_backbone_of_another_detector_loads(tmp_path):
    settings = dict(embed_dim=4, depths=(1, 1), focal_levels=4, focal_windows=3)
    net = FocalNet(**settings)
    state = {f'module.backbone.{key}': value for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / 'net.pt')
    fitted, *_ = fit_checkpoint(tmp_path / 'net.pt', FocalNet(**settings).state_dict())
    assert all(torch.equal(fitted[key], value) for key, value in net.state_dict().items())


def test_blocks_with_other_convolutions_are_refused(tmp_path):
    """X-Decoder T and SEEM T."""
    net = FocalNet(embed_dim=4, depths=(1, 1), focal_levels=2, focal_windows=3)
    state = {f'backbone.{key}': value for key, value in net.state_dict().items()}
    state['backbone.layers.0.blocks.0.dw1.weight'] = torch.zeros(4, 1, 3, 3)
    torch.save(state, tmp_path / 'net.pt')
    with pytest.raises(CheckpointError, match=r'net\.pt.*dw1.*X-Decoder T'):
        fit_checkpoint(tmp_path / 'net.pt', net.state_dict())


def test_classes_are_matched_by_name():
    theirs, ours = ('person', 'traffic light', 'car'), ('Car', 'cell', 'traffic_light')
    state = {HEAD: torch.arange(6.0).view(3, 2), 'neck.weight': torch.ones(2)}
    target = {HEAD: torch.full((3, 2), 9.0), 'neck.weight': torch.zeros(2)}
    fitted, kept = match_classes(state, target, theirs, ours)
    assert kept == ['Car', 'traffic_light']
    assert fitted[HEAD].tolist() == [[4, 5], [9, 9], [2, 3]]
    assert fitted['neck.weight'].tolist() == [1, 1]
    assert target[HEAD].eq(9).all()
