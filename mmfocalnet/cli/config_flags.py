"""Read a config and apply the flags of a tool to it."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import torch
from mmengine.config import Config

from mmfocalnet.cli.strategy_checks import FSDP_STRATEGIES, strategy_type
from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.config import find_dicts, read_model_config
from mmfocalnet.engine.cpu_amp import CpuAmpOptimWrapper
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import type_name
from mmfocalnet.text import short_repr


def load_config(args: Namespace) -> Config:
    """Read the config and apply the common flags.

    Args:
        args: Parsed flags of `add_common_flags`.

    Returns:
        The config, with ``work_dir`` (default: ``work_dirs/CONFIG_NAME``) and ``launcher``.

    Raises:
        ConfigError: If the file is missing, cannot be read or has no model, or an override
            cannot be applied.
    """
    if args.launcher == 'slurm':  # MMEngine sets it later, after errors before the run
        os.environ.setdefault('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0'))
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_model_config(args.config, args.cfg_options)
    import_datasets(cfg.get('default_scope'))
    for key, kind in (('work_dir', str), ('strategy', dict)):
        if not isinstance(cfg.get(key), (kind, type(None))):
            raise ConfigError(
                f'{key} of {args.config} must be a {kind.__name__}, got {short_repr(cfg[key])}: '
                'correct or remove it.'
            )
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def use_amp(cfg: Config) -> None:
    """Enable mixed precision: float16 with a loss scale on GPUs, bfloat16 on the CPU.

    Raises:
        ConfigError: If the config trains with DeepSpeed.
    """
    if strategy_type(cfg) == 'DeepSpeedStrategy':
        raise ConfigError(
            f'--amp cannot be used with DeepSpeed: set strategy=dict(fp16=dict(enabled=True)) in '
            f'{cfg.filename} instead.'
        )
    wrapper = cfg.optim_wrapper
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        # The scale must follow the gradients of all shards, not those of one process.
        wrapper.use_fsdp = strategy_type(cfg) in FSDP_STRATEGIES
    else:
        wrapper.type = CpuAmpOptimWrapper.__name__
        for gpu_setting in ('loss_scale', 'dtype'):
            wrapper.pop(gpu_setting, None)


def scale_lr(cfg: Config) -> None:
    """Scale the learning rate linearly with the batch size.

    Raises:
        ConfigError: If the config has no base batch size, or trains with DeepSpeed, for which
            MMEngine does not scale learning rates.
    """
    if strategy_type(cfg) == 'DeepSpeedStrategy':
        raise ConfigError(
            f'--auto-scale-lr cannot be used with DeepSpeed: set optim_wrapper.optimizer.lr in '
            f'{cfg.filename} instead.'
        )
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ConfigError(
            f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {cfg.filename}: '
            'add the batch size that its learning rate was chosen for.'
        )
    cfg.auto_scale_lr.enable = True


def use_drawing(cfg: Config, args: Namespace) -> None:
    """Draw predictions while testing: ``--show``, ``--show-dir`` and ``--wait-time``.

    Raises:
        ConfigError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ConfigError(
            f'--show and --show-dir need a visualization hook in {cfg.filename}: add '
            "default_hooks=dict(visualization=dict(type='DetVisualizationHook')), or "
            'SegVisualizationHook, or ClassVisualizationHook for a classifier.'
        )
    if type_name(hook) == 'VisualizationHook':  # mmpretrain's
        hook.update(
            enable=True, interval=1, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir
        )
        return
    # Upstream's mmseg draws every `interval`-th batch only, also in tests.
    hook.update(draw=True, interval=1, show=args.show, wait_time=args.wait_time)
    if args.show_dir and type_name(hook) == 'DetVisualizationHook':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    """Enable test-time augmentation.

    Raises:
        ConfigError: If the config has no ``tta_model`` or ``tta_pipeline``.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ConfigError(
            f'--tta needs tta_model and tta_pipeline in {cfg.filename}: see those in '
            'configs/_base_/datasets.'
        )
    if type_name(cfg.tta_model) == 'DetTTAModel':
        _drop_masks(cfg)
    tta_model = cfg.tta_model.copy()
    tta_model.module = cfg.model
    cfg.model = tta_model
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def _drop_masks(cfg: Config) -> None:
    # mmdet can merge the boxes of several views, but not their masks.
    if cfg.model.get('roi_head', {}).get('mask_head'):
        cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for evaluator in find_dicts(cfg.test_evaluator):
            if type_name(evaluator) == 'CocoMetric':
                evaluator.metric = 'bbox'
