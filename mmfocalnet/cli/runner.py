"""Building and running MMEngine's runner."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmfocalnet.arguments import finite_number
from mmfocalnet.checkpoints import fit_checkpoint
from mmfocalnet.cli.misspellings import check_names, find_misspelling
from mmfocalnet.cli.run_errors import run_errors
from mmfocalnet.compat.log_filters import filter_log
from mmfocalnet.compat.mmcv_ops import log_ops_provider
from mmfocalnet.config import find_dicts, is_first_process
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.engine.ddp import init_cpu_processes
from mmfocalnet.engine.hooks import PlainParamGroupsHook
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import make_folder
from mmfocalnet.models import FocalNet, FocalNetClassifier
from mmfocalnet.models.channels import check_channels
from mmfocalnet.models.focalnet_arguments import pretrained_options
from mmfocalnet.models.weight_checks import check_fits
from mmfocalnet.registry import type_name, warn_if_shadowed


def check_model(cfg: Config) -> None:
    """Check the FocalNet of a model without allocating its weights.

    Only a FocalNet or a `FocalNetClassifier` is built, on the meta device; other parts of the
    model are built by the run. In a launch rank 0 checks for all, so that a checkpoint is
    downloaded once.

    Raises:
        ConfigError: If a name is not registered, FocalNet does not accept its arguments, or
            necks or heads expect a different number of channels.
        CheckpointError: If a pretrained checkpoint cannot be read, or does not fit.
    """
    if not is_first_process(cfg):
        return
    check_names(cfg, 'model.backbone', 'default_hooks', 'custom_hooks')
    warn_if_shadowed()  # packages imported after ours may have registered a FocalNet
    for part in find_dicts(cfg.model):
        if type_name(part) not in ('FocalNet', 'FocalNetClassifier'):
            continue
        network = _build_on_meta(cfg, part)
        if isinstance(network, FocalNetClassifier):
            network.check_pretrained()
        elif isinstance(network, FocalNet):
            if part is cfg.model.get('backbone'):
                check_channels(cfg.model, network)
            if network.init_cfg:
                options = pretrained_options(network.init_cfg)
                fit_checkpoint(target=network.state_dict(), **options)


def build_runner(cfg: Config) -> Runner:
    """Build the runner. Without GPUs, initialize the gloo process group of a launch first.

    Raises:
        ConfigError: If the launcher's environment is missing, or a name or key is misspelt.
        RunError: If building fails for another reason.
        UserError: If the work dir cannot be written.
    """
    _check_launch(cfg)
    make_folder('--work-dir', cfg.work_dir)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        init_cpu_processes(cfg)
    with run_errors(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    filter_log(runner.logger)
    log_ops_provider()
    return runner


def train(cfg: Config) -> None:
    """Build the runner and train.

    Raises:
        ConfigError: As `build_runner`, or if the training set has less than one batch.
        CheckpointError: If the checkpoint to resume does not fit the model.
        RunError: If training fails for another reason.
        UserError: If a loss or weight is NaN or infinite, or a checkpoint cannot be written.
    """
    check_names(cfg, 'optim_wrapper.optimizer', 'param_scheduler', 'train_dataloader.sampler')
    _check_clipping(cfg)
    runner = build_runner(cfg)
    if cfg.get('compile'):
        runner.register_hook(PlainParamGroupsHook())
    _warn_if_unseeded(cfg)
    if cfg.get('resume') and cfg.get('load_from') and isinstance(runner, Runner):
        check_fits(runner.model, cfg.load_from)
    with run_errors(cfg):
        _check_epoch(runner)
        runner.train()


def test(cfg: Config, runner: Runner) -> None:
    """Test with a runner; raises as `train`."""
    with run_errors(cfg):
        runner.test()


def _check_launch(cfg: Config) -> None:
    """Check that the launcher of the config has started this process."""
    launchers = dict(
        pytorch=('torchrun', 'RANK', 'dist_train.sh CONFIG NUM_PROCESSES'),
        slurm=('srun', 'SLURM_STEP_ID', 'slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR'),
    )
    program, variable, script = launchers.get(cfg.launcher, (None, None, None))
    if program and variable not in os.environ:
        raise ConfigError(
            f'--launcher {cfg.launcher} needs the environment variables of {program}, such as '
            f'{variable}: use tools/{script}.'
        )


def _build_on_meta(cfg: Config, part: dict) -> Any:
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    try:
        with scope, torch.device('meta'):
            return MODELS.build(part)
    except (TypeError, KeyError) as error:
        if mistake := find_misspelling(cfg, error):
            raise ConfigError(mistake) from error
        raise


def _warn_if_unseeded(cfg: Config) -> None:
    """Log a warning if seeds of the sampler do not reach a training pipeline."""
    loader = cfg.get('train_dataloader') or {}
    sampler, dataset = type_name(loader.get('sampler')), loader.get('dataset')
    if not str(sampler).startswith('Seeded'):
        return
    faults = []
    for inner in find_datasets(dataset):
        steps = [type_name(step) for step in inner.get('pipeline') or ()]
        if 'SeedSample' not in steps:
            faults.append(
                f"{type_name(inner)} has no dict(type='SeedSample') as its pipeline's first step"
            )
    if 'ClassBalancedDataset' in map(type_name, find_dicts(dataset)):
        faults.append('ClassBalancedDataset drops the seeds: use SeededClassBalancedDataset')
    if faults:
        print_log(
            f'{cfg.filename}: {sampler} of train_dataloader does not seed all samples, so a '
            f'resumed run draws different augmentations. {"; ".join(faults)}.',
            logger='current',
            level=logging.WARNING,
        )


def _check_epoch(runner: Runner) -> None:
    """Check that an epoch has at least one batch."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop) and not len(loop.dataloader):
        raise ConfigError(
            f'The training set has {len(loop.dataloader.dataset)} samples, fewer than one batch of '
            'all processes: set a smaller train_dataloader.batch_size, or '
            'train_dataloader.drop_last=False.'
        )


def _check_clipping(cfg: Config) -> None:
    for node in find_dicts(cfg.get('optim_wrapper') or {}):
        clip_grad = node.get('clip_grad')
        for name, value in clip_grad.items() if isinstance(clip_grad, dict) else ():
            if name in ('max_norm', 'norm_type', 'clip_value'):
                finite_number(f'{name} of optim_wrapper.clip_grad', value)
