"""FocalNet in the families of mmdet and mmseg."""

import contextlib
import functools
import re
import subprocess
import sys

import pytest
import torch
from forked_tools import ROOT

from mmfocalnet.config_writing.base_config import read_base
from mmfocalnet.config_writing.families import Result, find_families, try_family
from mmfocalnet.config_writing.swap_backbone import swap_backbone
from mmfocalnet.config_writing.trial import build_model, compute_gradients
from mmfocalnet.errors import ConfigError

# Families with batch norm in their necks or heads, deformable convolutions or dynamic heads.
FAMILIES = {
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'rtmdet_ins': 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco',
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco',
    'yolof': 'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco',
    'dyhead': 'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco',
    'queryinst': 'mmdet::queryinst/queryinst_r50_fpn_1x_coco',
    'segformer': 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
}
# The others take more than ten seconds each.
DEFAULT = ('rtmdet', 'yolof')
CASES = [
    name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]
MODES = {
    'float32': {},
    'bf16': {},
    'checkpointed': dict(use_checkpoint=True),
    'frozen': dict(frozen_stages=2),
}


@functools.cache
def gradients(name, mode):
    backbone = dict(embed_dim=16, depths=[1, 1, 1, 1], drop_path_rate=0.0, **MODES[mode])
    cfg = swap_backbone(read_base(FAMILIES[name]), **backbone).cfg
    if name == 'queryinst':  # two of six stages
        cut_stages(cfg.model)
    model = build_model(cfg)
    autocast = torch.autocast('cpu', torch.bfloat16) if mode == 'bf16' else contextlib.nullcontext()
    with autocast:
        compute_gradients(cfg, model)
    return {k: v.grad for k, v in model.named_parameters() if v.requires_grad}


def cut_stages(model):
    head = model.roi_head
    head.update(num_stages=2, stage_loss_weights=[1, 1], mask_head=head.mask_head[:2])
    head.bbox_head = head.bbox_head[:2]
    model.train_cfg.rcnn = model.train_cfg.rcnn[:2]


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', CASES)
def test_families_train_in_every_mode(name, mode):
    found = gradients(name, mode)
    read = {k: v for k, v in found.items() if v is not None}
    assert all(v.isfinite().all() for v in read.values())
    stages = {re.match(r'backbone\.layers\.(\d)', k)[1] for k in read if '.layers.' in k[:16]}
    assert stages == ({'2', '3'} if mode == 'frozen' else {'0', '1', '2', '3'})
    if mode == 'checkpointed':
        expected = gradients(name, 'float32')
        for key, value in read.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6, msg=key)


def test_states_of_families(monkeypatch):
    from mmfocalnet.config_writing import families

    def state(package, family, check=lambda cfg: None):
        files = find_families(package)[family][:1]
        return try_family(family, files, check, build_only=True)

    assert state('mmdet', 'atss') == Result('atss', 'atss_r50_fpn_1x_coco.py', 'works')
    assert state('mmdet', 'cornernet').state == 'not exchangeable'

    def refuse(cfg):
        raise ConfigError('refused')

    found = state('mmdet', 'atss', refuse)
    assert (found.state, found.reason) == ('fails', 'refused')

    def build(cfg):
        raise ImportError('no package')

    monkeypatch.setattr(families, 'build_model', build)
    found = state('mmdet', 'atss')
    assert (found.state, found.reason) == ('stack', 'ImportError: no package')


def run_tool(*flags):
    command = [sys.executable, 'tools/try_detectors.py', 'mmdet', 'mmseg', *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def documented(state):
    """Families with this state in the tables of the documentation."""
    text = (ROOT / 'docs/any_detector.md').read_text()
    return re.findall(rf'^\| (\S+) \| \S+ \| {state} \|', text, flags=re.MULTILINE)


def test_documented_number_of_families():
    assert len(documented('works')) >= 140
    assert not documented('fails')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_documented_families_build():
    done = run_tool('--build')
    assert done.returncode == 0, done.stdout + done.stderr
    built = re.findall(r'^\w+ (\S+): works', done.stdout, flags=re.MULTILINE)
    assert not set(documented('works')) - set(built)


@pytest.mark.trial
@pytest.mark.timeout(3600)
def test_documented_families_work():
    done = run_tool()
    assert done.returncode == 0, done.stdout + done.stderr
    works = re.findall(r'^\w+ (\S+): works', done.stdout, flags=re.MULTILINE)
    assert not set(documented('works')) - set(works)
