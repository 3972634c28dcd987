"""What tools/train.py and tools/test.py share: flags to config, checks before anything is built."""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmfocalnet.checkpoints import (
    check_file,
    check_sums,
    fetch,
    fit_checkpoint,
    load_file,
    read_checkpoint,
    reads_training_checkpoints,
)
from mmfocalnet.compat.cpu import init_cpu_processes
from mmfocalnet.compat.mmcv_ops import log_ops_provider
from mmfocalnet.datasets.checks import check_classes, check_coco
from mmfocalnet.datasets.image_folder import check_image_folders
from mmfocalnet.errors import CheckpointError, ConfigError, OneProcessError, UserError
from mmfocalnet.hooks import CheckLossesHook
from mmfocalnet.hooks.checkpoints import MARK
from mmfocalnet.models import FocalNet, FocalNetClassifier
from mmfocalnet.models.channels import check_channels
from mmfocalnet.models.focalnet import pretrained_options
from mmfocalnet.registration import warn_of_namesakes

# MMEngine's strategies, and ours, under which no process has whole weights or optimizer states.
SHARDING = ('FocalNetFSDPStrategy', 'FSDPStrategy', 'DeepSpeedStrategy')
# This one has what MMEngine imports, 0.19.8 does not.
DEEPSPEED = 'deepspeed<=0.19.0'

# The disk is full, the user's share of it, or the size that files may have.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def one_sentence_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Let a command end mistakes of the user with one sentence on stderr and exit code 2.

    These are `UserError`, a full disk, and what MMEngine raises itself for a setting that a class
    does not take and for a class that it does not know. Everything else keeps its traceback, but
    Ctrl-C.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        logging.raiseExceptions = False  # a full disk would print a traceback per line of the log
        try:
            main()
        except KeyboardInterrupt:
            print(f'{Path(sys.argv[0]).name}: interrupted', file=sys.stderr)
            sys.exit(130)  # what shells say of it
        except Exception as error:
            text, in_worker = _message(error)
            sentence = ' '.join(text.split())
            if _raised_by_builder(error):
                sentence = (
                    f'The config does not fit what it builds ({sentence}): correct that name.'
                )
            elif getattr(error, 'errno', None) in FULL_DISK:
                sentence = (
                    f'{error.filename or "A file"} cannot be written ({error.strerror}): make '
                    'room, then run it again; a training goes on with --resume.'
                )
            elif not isinstance(error, UserError):
                raise
            # Most often every process of a launch fails alike, and one per machine says why; but
            # what a worker stumbles over the others may not have met.
            alone = in_worker or isinstance(error, OneProcessError)
            if alone or os.environ.get('LOCAL_RANK', '0') == '0':
                print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
            sys.exit(2)

    return wrapper


def _message(error: Exception) -> tuple[str, bool]:
    """What an error says, and whether PyTorch passed it on from a worker of a data loader."""
    text = str(error)
    in_worker = text.startswith('Caught ') and 'Traceback (most recent call last)' in text
    # PyTorch puts the whole traceback into the message; its last line is what was raised.
    return text.rsplit(f'{type(error).__name__}: ', 1)[-1] if in_worker else text, in_worker


def _raised_by_builder(error: Exception) -> bool:
    """Whether MMEngine's builder itself raised, not the class that it was building."""
    if not isinstance(error, (TypeError, KeyError)):
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return frame.name == 'build_from_cfg'


class _Options(DictAction):
    """KEY=VALUE pairs; anything else is a usage error."""

    def __call__(self, parser: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        try:
            super().__call__(parser, *args, **kwargs)
        except Exception:  # ValueError, AssertionError, SyntaxError, by the kind of typing error
            parser.error('--cfg-options takes KEY=VALUE pairs, such as train_cfg.max_epochs=1')


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add the flag that overrides settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        help='override settings of the config: KEY=VALUE, lists as key="[a,b]" or key=a,b',
    )


def add_common_flags(parser: ArgumentParser) -> None:
    """Add the flags that train and test share, named as in mmdet and mmseg."""
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    add_cfg_options(parser)
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
        ConfigError: If the file is missing, cannot be read or has no model, an override does
            not fit, or the work dir is a file.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    override(cfg, args.cfg_options)
    if 'model' not in cfg:
        raise ConfigError(
            f'{args.config} has no model: it is no config to train or test, or lacks its _base_.'
        )
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if Path(cfg.work_dir).exists() and not Path(cfg.work_dir).is_dir():
        raise ConfigError(f'--work-dir {cfg.work_dir} is a file: give a folder.')
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


def override(cfg: Config, options: dict[str, Any] | None) -> None:
    """Merge what ``--cfg-options`` gave into a config.

    Args:
        cfg: The config.
        options: Values by dotted key; None: none.

    Raises:
        ConfigError: If a key does not fit.
    """
    try:
        cfg.merge_from_dict(options or {})
    except Exception as error:
        raise ConfigError(
            f'--cfg-options {options} does not fit {cfg.filename} ({error}): '
            'give KEY=VALUE with keys of the config, such as train_cfg.max_epochs=1.'
        ) from error


def use_amp(cfg: Config) -> None:
    """Switch mixed precision on: float16 with a loss scale on GPUs, bfloat16 on the CPU.

    Raises:
        ConfigError: If the config trains with DeepSpeed.
    """
    if _strategy_type(cfg) == 'DeepSpeedStrategy':
        raise ConfigError(
            f'--amp is not for DeepSpeed, with which {cfg.filename} trains: set its own, such as '
            'strategy=dict(fp16=dict(enabled=True)), there.'
        )
    wrapper = cfg.optim_wrapper
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    else:
        wrapper.type = 'CpuAmpOptimWrapper'
        for gpu_setting in ('loss_scale', 'dtype'):
            wrapper.pop(gpu_setting, None)


def scale_lr(cfg: Config) -> None:
    """Let the learning rate follow the batch size.

    Raises:
        ConfigError: If the config does not say for which batch size its rate is meant, or
            trains with DeepSpeed, for which MMEngine does not scale rates.
    """
    if _strategy_type(cfg) == 'DeepSpeedStrategy':
        raise ConfigError(
            f'--auto-scale-lr is not for DeepSpeed, with which {cfg.filename} trains: set '
            'optim_wrapper.optimizer.lr.'
        )
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
            "default_hooks=dict(visualization=dict(type='DetVisualizationHook')), or "
            'SegVisualizationHook, or ClassVisualizationHook for a classifier.'
        )
    # Upstream's mmseg draws only every `interval`-th batch, when testing too.
    hook.update(draw=True, interval=1, show=args.show, wait_time=args.wait_time)
    if args.show_dir and hook.type == 'DetVisualizationHook':
        hook.test_out_dir = args.show_dir
    elif args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    """Switch test-time augmentation on.

    Raises:
        ConfigError: If the config does not say how.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ConfigError(
            f'--tta needs tta_model and tta_pipeline in {cfg.filename}: see those in '
            'configs/_base_/datasets.'
        )
    if cfg.tta_model.type == 'DetTTAModel':
        _drop_masks(cfg)
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def check_strategy(cfg: Config) -> None:
    """Look for what training over shards needs and MMEngine would miss halfway.

    Raises:
        ConfigError: If there is a strategy without its runner, no launch of several processes, no
            DeepSpeed, a folder of it to resume from, or a hook that cannot work with shards.
    """
    strategy = _strategy_type(cfg)
    if cfg.get('strategy') and cfg.get('runner_type') != 'FlexibleRunner':
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
        if hook.get('type') == 'EMAHook':
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


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Look for the data of some splits before anything is built.

    Args:
        cfg: The config.
        splits: Of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        ConfigError: If an annotation file or image folder is missing, or heads have another
            number of classes.
        DataError: If the categories or panoptic maps of a COCO-format dataset do not fit.
    """
    loaders = [cfg.get(f'{split}_dataloader') or {} for split in splits]
    for split in splits:
        check_paths(cfg, f'{split}_dataloader')
        check_paths(cfg, f'{split}_evaluator')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            for node in _dicts(cfg.get(f'{split}_dataloader') or {}):
                if 'type' in node and ('ann_file' in node or 'data_prefix' in node):
                    check_coco(node)
                    check_classes(node, cfg.model)
    check_image_folders(list(_dicts(loaders)), cfg.model)


def check_paths(cfg: Config, part: str) -> None:
    """Look for the files and folders that a part of a config names.

    Args:
        cfg: The config.
        part: Such as ``'train_dataloader'``; the config may lack it.

    Raises:
        ConfigError: If one is missing.
    """
    for path in _data_paths(cfg.get(part) or {}):
        if '://' not in path and not Path(path).exists():
            raise ConfigError(
                f'{path} is missing ({part} of {cfg.filename}): put or link the data there, or '
                'change data_root in a config of yours that inherits this one.'
            )


def check_start(cfg: Config) -> None:
    """Find and try the checkpoint that a run starts from or resumes.

    MMEngine falls back to unpickling whatever it is given; a file that does not load safely
    never gets that far.

    Args:
        cfg: The config. Where it resumes the work dir's newest checkpoint, ``load_from`` is set
            to the newest that is whole, and the seed to that of its run.

    Raises:
        CheckpointError: If it is missing, cannot be downloaded or is unreadable.
    """
    resume = cfg.get('resume')
    if resume and not cfg.get('load_from'):
        cfg.load_from = _find_checkpoint(Path(cfg.work_dir))
    if cfg.get('load_from'):
        checkpoint = _read(fetch(cfg.load_from))
        if resume:
            _take_seed(cfg, checkpoint)


def check_model(cfg: Config) -> None:
    """Build the model without memory and fit its pretrained weights, leaving nothing behind.

    In a launch rank 0 does it for all, so that a checkpoint is downloaded once; the others wait
    for it where the processes join.

    Raises:
        ConfigError: If FocalNet does not take its settings, neck or heads not its channels, or
            FSDP not the weights.
        CheckpointError: If a checkpoint cannot be found, read or fitted.
    """
    if os.environ.get('RANK', '0') != '0':
        return
    warn_of_namesakes()  # those that came later than our own import
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.device('meta'):
        # The backbone first: necks and heads assert that their channels fit.
        backbone = MODELS.build(cfg.model.backbone) if 'backbone' in cfg.model else None
        if isinstance(backbone, FocalNet):
            check_channels(cfg.model, backbone)
        model = MODELS.build(cfg.model)
    scalars = [name for name, weight in model.named_parameters() if not weight.ndim]
    if scalars and _strategy_type(cfg) in ('FocalNetFSDPStrategy', 'FSDPStrategy'):
        raise ConfigError(
            f'FSDP cannot shard scalar weights, and {cfg.model.type} of {cfg.filename} has '
            f'{scalars[0]}: train it without runner_type and strategy.'
        )
    for module in model.modules():
        if isinstance(module, FocalNet) and module.init_cfg:
            fit_checkpoint(target=module.state_dict(), **pretrained_options(module.init_cfg))
    if isinstance(model, FocalNetClassifier):
        model.check_pretrained()


def check_fits(model: nn.Module, checkpoint: str) -> None:
    """Make sure that a checkpoint holds every weight of a model that is to be tested.

    Args:
        model: The model as MMEngine built it.
        checkpoint: Path or http(s) URL of its checkpoint.

    Raises:
        CheckpointError: If weights are missing or have other shapes.
    """
    if not reads_training_checkpoints():
        return
    state = {
        key.removeprefix('module.'): value for key, value in read_checkpoint(checkpoint).items()
    }
    bare = model.module if is_model_wrapper(model) else model
    if isinstance(bare, FocalNetClassifier):
        state = bare.rename(state)
    wrong = [
        key
        for key, value in model.state_dict().items()
        if (name := key.removeprefix('module.')) not in state or state[name].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f'{checkpoint} is not a checkpoint of this config: {len(wrong)} weights are missing '
            f'or have another shape ({", ".join(wrong[:3])} ...); give the one that was trained '
            'with it.'
        )


def build_runner(cfg: Config) -> Runner:
    """Build the Runner; on machines without GPUs join a launch's gloo processes first.

    Raises:
        ConfigError: If the launcher's environment is missing.
    """
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for torchrun, which sets RANK and its like: use '
            'tools/dist_train.sh CONFIG NUM_PROCESSES.'
        )
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        init_cpu_processes(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    log_ops_provider()
    return runner


def _strategy_type(cfg: Config) -> str | None:
    return (cfg.get('strategy') or {}).get('type')


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


def train(cfg: Config) -> None:
    """Build the Runner and train.

    Raises:
        ConfigError: As `build_runner`.
        UserError: If a loss or a weight is no number, or a checkpoint cannot be written.
    """
    runner = build_runner(cfg)
    with ExitStack() as stack:
        for hook in runner.hooks:
            if isinstance(hook, CheckLossesHook):
                stack.enter_context(hook.explaining(runner))
        runner.train()


def _find_checkpoint(work_dir: Path) -> str | None:
    """The newest whole checkpoint of a work dir; None if nothing was saved there yet.

    One that is gone or damaged is passed over with one sentence, if there is another.
    """
    mark = work_dir / MARK
    if not mark.is_file():
        return None
    newest = _at_hand(Path(mark.read_text().strip()), work_dir)
    problems = []
    for path in [newest, *_before(newest)]:
        try:
            if not path.is_file():
                raise CheckpointError(
                    f'{mark} names {str(path)!r}, which is gone: give another one as --resume '
                    f'PATH, or delete {mark} to start afresh.'
                )
            check_sums(path)
            _read(path)
        except CheckpointError as error:
            problems.append(error)
        else:
            if problems and os.environ.get('RANK', '0') == '0':
                said = str(problems[0]).rstrip('.')
                print(f'{said}; going on from {path} instead.', file=sys.stderr)
            return str(path)
    raise problems[0]


def _at_hand(path: Path, work_dir: Path) -> Path:
    """The checkpoint itself, or its namesake in a work dir that was moved."""
    return path if path.is_file() or not path.name else work_dir / path.name


def _before(newest: Path) -> list[Path]:
    """The checkpoints beside one that have its name and a lower number, the highest first."""
    numbers = {}
    for path in (newest, *newest.parent.glob('*.*')):
        if name := re.fullmatch(r'(\D*)(\d+)(\.\w+)', path.name):
            numbers[path] = (name[1], name[3], int(name[2]))
    if newest not in numbers:
        return []
    *kind, number = numbers[newest]
    older = [path for path in numbers if [*numbers[path][:2]] == kind and numbers[path][2] < number]
    return sorted(older, key=lambda path: numbers[path][2], reverse=True)


def _read(path: Path) -> Any:
    if reads_training_checkpoints():
        return load_file(path)
    check_file(path)
    return {}


def _take_seed(cfg: Config, checkpoint: Any) -> None:
    """Go on with the seed of a run that is resumed, in its sampler too.

    MMEngine goes back to that seed only after the data loader was built with another.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and isinstance(meta.get('seed'), int):
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=meta['seed'])


def _drop_masks(cfg: Config) -> None:
    # mmdet merges the boxes of several views and refuses predictions with masks.
    if cfg.model.get('roi_head', {}).get('mask_head'):
        cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for evaluator in _dicts(cfg.test_evaluator):
            if evaluator.get('type') == 'CocoMetric':
                evaluator.metric = 'bbox'


def _data_paths(part: dict | list) -> Iterator[str]:
    for node in _dicts(part):
        root = node.get('data_root') or ''
        prefixes = node.get('data_prefix') or {}
        for path in (node.get('ann_file'), node.get('seg_prefix'), *prefixes.values()):
            if isinstance(path, str) and path:
                # Both may be addresses of a storage that MMEngine reads from.
                yield path if '://' in path else os.path.join(root, path)


def _dicts(node: Any) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _dicts(value)
