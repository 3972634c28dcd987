"""What tools/train.py and tools/test.py share: flags to config, checks before anything is built."""

from __future__ import annotations

import functools
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmfocalnet.checkpoints import fetch, load_file, reads_training_checkpoints
from mmfocalnet.compat.cpu import init_cpu_processes
from mmfocalnet.compat.mmcv_ops import log_ops_provider
from mmfocalnet.errors import ConfigError, UserError


def one_sentence_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Let a command end a `UserError` with one sentence on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper() -> None:
        try:
            main()
        except UserError as error:
            # Every process of a launch fails alike; one says why.
            if os.environ.get('RANK', '0') == '0':
                print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr)
            sys.exit(2)

    return wrapper


def add_common_flags(parser: ArgumentParser) -> None:
    """Add the flags that train and test share, named as in mmdet and mmseg."""
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: KEY=VALUE, lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torchrun sets the environment variable; older launchers pass the flag.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: Namespace) -> Config:
    """Read the config and merge the common flags into it.

    Args:
        args: Parsed flags of `add_common_flags`.

    Returns:
        The config, with ``work_dir`` (default: ``work_dirs/CONFIG_NAME``) and ``launcher``.

    Raises:
        ConfigError: If the file is missing or cannot be read, or an override does not fit.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    if args.cfg_options:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except Exception as error:
            raise ConfigError(
                f'--cfg-options {args.cfg_options} does not fit {args.config} ({error}): '
                'give KEY=VALUE with keys of the config, such as train_cfg.max_epochs=1.'
            ) from error
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def read_config(path: str) -> Config:
    """Read a config file.

    Raises:
        ConfigError: If it, or a file it inherits from, is missing or cannot be read.
    """
    if not Path(path).is_file():
        raise ConfigError(
            f'There is no config file {path!r}: give the path of one, such as '
            'configs/mask_rcnn/focalnet_t_1x.py.'
        )
    try:
        return Config.fromfile(path)
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(
            f'{path} cannot be read as a config ({type(error).__name__}: {reason}): '
            'compare it with those in configs/.'
        ) from error


def use_amp(cfg: Config) -> None:
    """Switch mixed precision on: float16 with a loss scale on GPUs, bfloat16 on the CPU."""
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'


def scale_lr(cfg: Config) -> None:
    """Let the learning rate follow the batch size.

    Raises:
        ConfigError: If the config does not say for which batch size its rate is meant.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ConfigError(
            f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {cfg.filename}: '
            'add the batch size for which its learning rate is meant.'
        )
    cfg.auto_scale_lr.enable = True


def use_drawing(cfg: Config, args: Namespace) -> None:
    """Draw predictions while testing, as ``--show``, ``--show-dir`` and ``--wait-time`` say.

    Raises:
        ConfigError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ConfigError(
            f'--show and --show-dir need a visualization hook in {cfg.filename}: add '
            "default_hooks=dict(visualization=dict(type='DetVisualizationHook')) or its mmseg twin."
        )
    hook.update(draw=True, show=args.show, wait_time=args.wait_time)
    if args.show_dir and hook.type == 'DetVisualizationHook':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    """Switch test-time augmentation on.

    Raises:
        ConfigError: If the config does not say how.
    """
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise ConfigError(
            f'--tta needs tta_model and tta_pipeline in {cfg.filename}: see those in '
            'configs/_base_/datasets.'
        )
    if cfg.tta_model.type == 'DetTTAModel':
        _drop_masks(cfg)
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Look for the data of some splits before anything is built.

    Args:
        cfg: The config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        ConfigError: If an annotation file or image folder is missing.
    """
    for split in splits:
        for path in _data_paths(cfg.get(f'{split}_dataloader') or {}, cfg):
            if '://' not in path and not Path(path).exists():
                raise ConfigError(
                    f'{path} is missing ({split}_dataloader of {cfg.filename}): put or link the '
                    f'data there, or point to yours with --cfg-options '
                    f'{split}_dataloader.dataset.data_root=PATH.'
                )


def check_checkpoints(cfg: Config) -> None:
    """Find or download every checkpoint that the config names, and try the one to start from.

    MMEngine falls back to unpickling whatever it is given; a file that does not load safely
    never gets that far.

    Raises:
        CheckpointError: If one is missing, cannot be downloaded or is unreadable.
    """
    if cfg.get('load_from'):
        path = fetch(cfg.load_from)
        if reads_training_checkpoints():
            load_file(path)
    for backbone in _dicts(cfg.model):
        init_cfg = backbone.get('init_cfg')
        if str(backbone.get('type', '')).endswith('FocalNet') and isinstance(init_cfg, dict):
            fetch(init_cfg.get('checkpoint', ''))


def build_runner(cfg: Config) -> Runner:
    """Build the Runner; on machines without GPUs join a launch's gloo processes first.

    Raises:
        CheckpointError: If a checkpoint that the config names is missing or unreadable.
    """
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        init_cpu_processes(cfg)
    check_checkpoints(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    log_ops_provider()
    return runner


def _drop_masks(cfg: Config) -> None:
    # mmdet merges the boxes of several views and refuses predictions with masks.
    if cfg.model.get('roi_head', {}).get('mask_head'):
        cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        cfg.test_evaluator.metric = 'bbox'


def _data_paths(loader: dict, cfg: Config) -> Iterator[str]:
    for dataset in _dicts(loader):
        root = dataset.get('data_root') or ''
        prefixes = dataset.get('data_prefix') or {}
        for part in (dataset.get('ann_file'), *prefixes.values()):
            if isinstance(part, str) and part:
                yield part if '://' in root else os.path.join(root, part)


def _dicts(node: Any) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _dicts(value)
