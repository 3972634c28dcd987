"""Checks of configs that train with FSDP or DeepSpeed."""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.config import Config

from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import type_name

# Strategies under which no process holds the complete weights or optimizer states.
FSDP_STRATEGIES = ('FocalNetFSDPStrategy', 'FSDPStrategy')
SHARDING_STRATEGIES = (*FSDP_STRATEGIES, 'DeepSpeedStrategy')


# The latest tested version; 0.19.8 lacks a module that MMEngine imports.
DEEPSPEED_REQUIREMENT = 'deepspeed<=0.19.0'


def check_strategy(cfg: Config) -> None:
    """Check the requirements of sharded training, which MMEngine reports late or not at all.

    Raises:
        ConfigError: If a strategy has no launcher or the wrong runner, DeepSpeed is not installed
            or the config resumes with it, or a hook does not support sharding.
    """
    strategy = strategy_type(cfg)
    runner = type_name(dict(type=cfg.get('runner_type')))
    if cfg.get('strategy') and runner != 'FlexibleRunner':
        raise ConfigError(
            f"{cfg.filename} has a strategy, which requires runner_type='FlexibleRunner': set "
            'it, or remove strategy.'
        )
    if strategy not in SHARDING_STRATEGIES:
        return
    if cfg.launcher == 'none':
        raise ConfigError(
            f'{cfg.filename} shards training over processes ({strategy}): start it with '
            'tools/dist_train.sh CONFIG NUM_PROCESSES.'
        )
    for hook in cfg.get('custom_hooks') or ():
        name = type_name(hook)
        if name in ('EMAHook', 'MatchClassesHook'):
            raise ConfigError(
                f'{name} does not support sharded weights ({strategy} of {cfg.filename}): remove '
                'one of the two.'
            )
    if strategy == 'DeepSpeedStrategy':
        _check_deepspeed(cfg)


def drop_strategy(cfg: Config) -> None:
    """Test with MMEngine's plain Runner, which loads checkpoints of one file, not shards."""
    for key in ('runner_type', 'strategy'):
        cfg.pop(key, None)


def strategy_type(cfg: Config) -> str | None:
    """The training strategy of a config; None for MMEngine's plain Runner."""
    return type_name(cfg.get('strategy'))


def _check_deepspeed(cfg: Config) -> None:
    if find_spec('deepspeed') is None:
        raise ConfigError(
            f'{cfg.filename} trains with DeepSpeed, which is not installed: pip install '
            f'"{DEEPSPEED_REQUIREMENT}", or use FSDP (docs/training.md).'
        )
    if find_spec('deepspeed.runtime.fp16.onebit') is None:
        raise ConfigError(
            'MMEngine imports optimizers that this DeepSpeed lacks: pip install '
            f'"{DEEPSPEED_REQUIREMENT}", or use FSDP (docs/training.md).'
        )
    if cfg.get('resume') or cfg.get('load_from'):
        raise ConfigError(
            '--resume and load_from are not supported with DeepSpeed, which would unpickle its '
            'files: start from ImageNet weights (init_cfg of the backbone), or use FSDP '
            '(docs/training.md).'
        )
