"""Training over shards: what is wrapped and what is refused.

tests/test_tools/test_fsdp.py trains with it.
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch.distributed.fsdp.wrap import _recursive_wrap

from mmfocalnet import FocalNet
from mmfocalnet.cli import config_flags, strategy_checks
from mmfocalnet.engine.fsdp import FocalNetFSDPStrategy, focalnet_blocks
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import FocalNetBlock

ROOT = Path(__file__).resolve().parents[2]
FSDP = 'configs/mask_rcnn/focalnet_l_fsdp_3x.py'
DEEPSPEED = 'configs/mask_rcnn/focalnet_l_deepspeed_3x.py'


class Wrapped(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_the_policy_wraps_only_blocks():
    model = torch.nn.ModuleDict(
        dict(
            backbone=FocalNet(embed_dim=4, depths=(1, 2), focal_levels=1, focal_windows=3),
            head=torch.nn.Linear(8, 8),
        )
    )
    blocks = {name for name, part in model.named_modules() if isinstance(part, FocalNetBlock)}
    _recursive_wrap(model, focalnet_blocks, Wrapped, ignored_modules=set(), ignored_params=set())
    wrapped = {name for name, part in model.named_modules() if isinstance(part, Wrapped)}
    assert wrapped == blocks
    assert len(wrapped) == 3


def test_policy_and_strategy_are_registered():
    assert FUNCTIONS.get('focalnet_blocks') is focalnet_blocks
    assert STRATEGIES.get('FocalNetFSDPStrategy') is FocalNetFSDPStrategy


@pytest.mark.parametrize(
    ('path', 'plain', 'strategy'),
    [
        (FSDP, 'mask_rcnn/focalnet_l_3x', 'FocalNetFSDPStrategy'),
        (
            'configs/dino/focalnet_l_fl4_5scale_fsdp_12e.py',
            'dino/focalnet_l_fl4_5scale_12e',
            'FocalNetFSDPStrategy',
        ),
        (
            'configs/dino/focalnet_l_fl3_4scale_fsdp_12e.py',
            'dino/focalnet_l_fl3_4scale_12e',
            'FocalNetFSDPStrategy',
        ),
        (DEEPSPEED, 'mask_rcnn/focalnet_l_3x', 'DeepSpeedStrategy'),
        (
            'configs/mask2former/focalnet_l_fsdp_coco_panoptic.py',
            'mask2former/focalnet_l_coco_panoptic',
            'FocalNetFSDPStrategy',
        ),
    ],
)
def test_sharded_configs_equal_the_recipe_otherwise(path, plain, strategy):
    cfg, plain = Config.fromfile(ROOT / path), Config.fromfile(ROOT / f'configs/{plain}.py')
    assert cfg.runner_type == 'FlexibleRunner'
    assert cfg.strategy.type == strategy
    assert cfg.model == plain.model
    assert cfg.optim_wrapper.optimizer == plain.optim_wrapper.optimizer
    if strategy == 'DeepSpeedStrategy':
        # Its wrapper takes no clip_grad.
        assert cfg.optim_wrapper.type == 'DeepSpeedOptimWrapper'
        assert 'clip_grad' not in cfg.optim_wrapper
    else:
        assert cfg.optim_wrapper == plain.optim_wrapper
    strategy_checks.drop_strategy(cfg)
    assert 'runner_type' not in cfg
    assert 'strategy' not in cfg


def check(path, **settings):
    cfg = Config.fromfile(ROOT / path)
    cfg.merge_from_dict({'launcher': 'pytorch', **settings})
    strategy_checks.check_strategy(cfg)


@pytest.fixture
def packages(monkeypatch):
    """Pretend that the named packages are there, and no others."""

    def _packages(*names):
        monkeypatch.setattr(
            strategy_checks, 'find_spec', lambda name: name if name in names else None
        )

    return _packages


def test_configs_that_cannot_be_sharded():
    check(FSDP)
    check('configs/mask_rcnn/focalnet_l_3x.py')
    with pytest.raises(ConfigError, match=r'tools/dist_train\.sh CONFIG'):
        check(FSDP, launcher='none')
    with pytest.raises(ConfigError, match="runner_type='FlexibleRunner'"):
        check('configs/mask_rcnn/focalnet_l_3x.py', strategy=dict(type='DDPStrategy'))
    for hook in ('EMAHook', 'MatchClassesHook'):
        with pytest.raises(ConfigError, match=hook):
            check(FSDP, custom_hooks=[dict(type=f'mmengine.{hook}')])


@pytest.mark.parametrize(
    ('path', 'shards'), [(FSDP, True), ('configs/mask_rcnn/focalnet_l_3x.py', False)]
)
def test_the_loss_scale_follows_all_shards(monkeypatch, path, shards):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = Config.fromfile(ROOT / path)
    config_flags.use_amp(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.use_fsdp) == ('AmpOptimWrapper', shards)


def test_scalar_weights_cannot_be_sharded():
    model = torch.nn.Module()
    model.scale = torch.nn.Parameter(torch.tensor(1.0))
    fsdp = object.__new__(FocalNetFSDPStrategy)
    with pytest.raises(ConfigError, match='scale'):
        fsdp._wrap_model(model)


def test_deepspeed_needs_its_package_and_refuses_flags_that_it_ignores(packages):
    packages()
    with pytest.raises(ConfigError, match=r'pip install "deepspeed<=[\d.]+"'):
        check(DEEPSPEED)
    packages('deepspeed')
    with pytest.raises(ConfigError, match='deepspeed<='):
        check(DEEPSPEED)
    packages('deepspeed', 'deepspeed.runtime.fp16.onebit')
    check(DEEPSPEED)
    with pytest.raises(ConfigError, match='--resume'):
        check(DEEPSPEED, resume=True)
    with pytest.raises(ConfigError, match='load_from'):
        check(DEEPSPEED, load_from='epoch_1.pth')
    cfg = Config.fromfile(ROOT / DEEPSPEED)
    for change, flag in (
        (config_flags.use_amp, '--amp'),
        (config_flags.scale_lr, '--auto-scale-lr'),
    ):
        with pytest.raises(ConfigError, match=flag):
            change(cfg)
