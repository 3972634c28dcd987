"""Trying a model out, and running it."""

from __future__ import annotations

import os
from contextlib import ExitStack

import torch
from mmengine.config import Config
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmfocalnet.arguments import finite_number
from mmfocalnet.checkpoints import fit_checkpoint
from mmfocalnet.cli.settings import STUMBLES, naming, naming_any
from mmfocalnet.cli.strategy import FSDP, strategy_type
from mmfocalnet.compat.cpu import init_cpu_processes
from mmfocalnet.compat.mmcv_ops import log_ops_provider
from mmfocalnet.config import is_first_process
from mmfocalnet.engine.hooks import CheckLossesHook
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import make_folder
from mmfocalnet.models import FocalNet, FocalNetClassifier
from mmfocalnet.models.channels import check_channels
from mmfocalnet.models.focalnet_arguments import pretrained_options
from mmfocalnet.models.weights import check_fits
from mmfocalnet.registry import type_name, warn_if_shadowed


def check_model(cfg: Config) -> None:
    """Build the model without memory and fit its pretrained weights, leaving nothing behind.

    In a launch rank 0 does it for all, so that a checkpoint is downloaded once; the others wait
    for it where the processes join.

    Raises:
        ConfigError: If FocalNet does not take its settings, neck or heads not its channels, or
            FSDP not the weights.
        CheckpointError: If a checkpoint cannot be found, read or fitted.
    """
    if not is_first_process(cfg):
        return
    warn_if_shadowed()  # those that came later than our own import
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with naming('model', cfg, (*STUMBLES, RuntimeError)), scope, torch.device('meta'):
        # The backbone first: necks and heads assert that their channels fit.
        backbone = MODELS.build(cfg.model.backbone) if 'backbone' in cfg.model else None
        if isinstance(backbone, FocalNet):
            check_channels(cfg.model, backbone)
        model = MODELS.build(cfg.model)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f'model.type of {cfg.filename} makes a {type(model).__name__}: name a detector or '
            'segmentor, as in configs/_base_/models.'
        )
    scalars = [name for name, weight in model.named_parameters() if not weight.ndim]
    if scalars and strategy_type(cfg) in FSDP:
        raise ConfigError(
            f'FSDP cannot shard scalar weights, and {type_name(cfg.model)} of {cfg.filename} has '
            f'{scalars[0]}: train it without runner_type and strategy.'
        )
    for module in model.modules():
        if isinstance(module, FocalNet) and module.init_cfg:
            fit_checkpoint(target=module.state_dict(), **pretrained_options(module.init_cfg))
    if isinstance(model, FocalNetClassifier):
        model.check_pretrained()


def build_runner(cfg: Config) -> Runner:
    """Build the Runner; on machines without GPUs join a launch's gloo processes first.

    Raises:
        ConfigError: If the launcher's environment is missing, or a class does not take its
            settings.
        UserError: If the work dir cannot be written to.
    """
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for torchrun, which sets RANK and its like: use '
            'tools/dist_train.sh CONFIG NUM_PROCESSES.'
        )
    make_folder('--work-dir', cfg.work_dir)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        init_cpu_processes(cfg)
    with naming_any(cfg, otherwise='A setting'):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    log_ops_provider()
    return runner


def train(cfg: Config) -> None:
    """Build the Runner and train.

    Raises:
        ConfigError: As `build_runner`.
        CheckpointError: If the checkpoint to resume does not fit the model.
        UserError: If a loss or a weight is no number, or a checkpoint cannot be written.
    """
    runner = build_runner(cfg)
    if cfg.get('resume') and cfg.get('load_from') and isinstance(runner, Runner):
        check_fits(runner.model, cfg.load_from)
    with ExitStack() as stack:
        stack.enter_context(naming_any(cfg))
        for hook in runner.hooks:
            if isinstance(hook, CheckLossesHook):
                stack.enter_context(hook.explaining(runner))
        _check_epoch(runner)
        if isinstance(runner, Runner):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            _check_clipping(runner.optim_wrapper)
        runner.train()


def _check_epoch(runner: Runner) -> None:
    """Refuse a set that does not fill a single batch of an epoch."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop) and not len(loop.dataloader):
        raise ConfigError(
            f'The training set has {len(loop.dataloader.dataset)} samples, fewer than one batch of '
            'all processes: set a smaller train_dataloader.batch_size, or '
            'train_dataloader.drop_last=False.'
        )


def _check_clipping(wrapper: BaseOptimWrapper) -> None:
    for name, value in (getattr(wrapper, 'clip_grad_kwargs', None) or {}).items():
        if name in ('max_norm', 'norm_type', 'clip_value'):
            finite_number(f'{name} of optim_wrapper.clip_grad', value)
