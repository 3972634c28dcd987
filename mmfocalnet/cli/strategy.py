"""What training over shards needs of a config."""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.config import Config

from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import type_name

# MMEngine's strategies, and ours, under which no process has whole weights or optimizer states.
FSDP = ('FocalNetFSDPStrategy', 'FSDPStrategy')
SHARDING = (*FSDP, 'DeepSpeedStrategy')


# The newest that was tried and works: 0.19.8 lacks a module that MMEngine imports.
DEEPSPEED = 'deepspeed<=0.19.0'


def check_strategy(cfg: Config) -> None:
    """Look for what training over shards needs and MMEngine would miss halfway.

    Raises:
        ConfigError: If there is a strategy without its runner, no launch of several processes, no
            DeepSpeed, a folder of it to resume from, or a hook that cannot work with shards.
    """
    strategy = strategy_type(cfg)
    runner = type_name(dict(type=cfg.get('runner_type')))
    if cfg.get('strategy') and runner != 'FlexibleRunner':
        raise ConfigError(
            f"{cfg.filename} has a strategy, which is for runner_type='FlexibleRunner': set that "
            'too, or drop strategy.'
        )
    if strategy not in SHARDING:
        return
    if cfg.launcher == 'none':
        raise ConfigError(
            f'{cfg.filename} spreads the training over processes ({strategy}): start it with '
            'tools/dist_train.sh CONFIG NUM_PROCESSES.'
        )
    for hook in cfg.get('custom_hooks') or ():
        if type_name(hook) == 'EMAHook':
            raise ConfigError(
                f'EMAHook averages whole weights, and {strategy} of {cfg.filename} has shards of '
                'them: drop one of the two.'
            )
    if strategy == 'DeepSpeedStrategy':
        _check_deepspeed(cfg)


def drop_strategy(cfg: Config) -> None:
    """Let MMEngine's plain Runner test what was trained over shards: checkpoints are whole."""
    for key in ('runner_type', 'strategy'):
        cfg.pop(key, None)


def strategy_type(cfg: Config) -> str | None:
    """The strategy that a config trains by; None for MMEngine's plain Runner."""
    return type_name(cfg.get('strategy'))


def _check_deepspeed(cfg: Config) -> None:
    if find_spec('deepspeed') is None:
        raise ConfigError(
            f'{cfg.filename} trains with DeepSpeed, which is not installed: pip install '
            f'"{DEEPSPEED}", or use FSDP (docs/training.md).'
        )
    if find_spec('deepspeed.runtime.fp16.onebit') is None:
        raise ConfigError(
            'MMEngine looks for optimizers that this DeepSpeed no longer has: pip install '
            f'"{DEEPSPEED}", or use FSDP (docs/training.md).'
        )
    if cfg.get('resume') or cfg.get('load_from'):
        raise ConfigError(
            '--resume and load_from are not for DeepSpeed, which reads folders of pickles only: '
            'start from ImageNet weights (init_cfg of the backbone), or use FSDP '
            '(docs/training.md).'
        )
