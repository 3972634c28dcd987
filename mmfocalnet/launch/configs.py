"""Reading a config, and what flags change in it."""

from __future__ import annotations

import math
import os
import pkgutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.fileio import YamlHandler, register_handler
from mmengine.utils import get_object_from_string

from mmfocalnet.errors import ConfigError
from mmfocalnet.launch.sharding import FSDP, strategy_type
from mmfocalnet.models.arguments import in_one_line
from mmfocalnet.registration import type_name

MAX_NODES = 10**6
"""Values of a YAML config, with those of an alias counted each time."""


@register_handler(['yaml', 'yml'])
class SafeYamlHandler(YamlHandler):
    """Read YAML for MMEngine without the tags that run code."""

    def load_from_fileobj(self, file: TextIO, **kwargs: Any) -> Any:
        """Read a file; MMEngine's ``Loader`` is replaced.

        Raises:
            ValueError: If aliases expand it beyond `MAX_NODES`, or contain themselves.
        """
        content = super().load_from_fileobj(file, Loader=_SafeLoader)
        if _count_nodes(content, {}) > MAX_NODES:
            raise ValueError(f'its aliases (*) expand to more than {MAX_NODES} values')
        return content


class _SafeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, and the tuples that MMEngine's configs are dumped with."""

    def construct_tuple(self, node: yaml.SequenceNode) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


def _count_nodes(node: Any, known: dict[int, float]) -> float:
    """Number of values in nested dicts and lists, infinite if one contains itself."""
    if not isinstance(node, (dict, list, tuple)):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        children = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_count_nodes(child, known) for child in children)
    return known[id(node)]


_SafeLoader.add_constructor('tag:yaml.org,2002:python/tuple', _SafeLoader.construct_tuple)


def load_config(args: Namespace) -> Config:
    """Read the config and merge the common flags into it.

    Args:
        args: Parsed flags of `add_common_flags`.

    Returns:
        The config, with ``work_dir`` (default: ``work_dirs/CONFIG_NAME``) and ``launcher``.

    Raises:
        ConfigError: If the file is missing, cannot be read or has no model, or an override does
            not fit.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    override(cfg, args.cfg_options)
    if 'model' not in cfg:
        raise ConfigError(
            f'{args.config} has no model: it is no config to train or test, or lacks its _base_.'
        )
    if not isinstance(cfg.model, dict) or 'type' not in cfg.model:
        raise ConfigError(
            f'model of {args.config} must be a dict with a type, got '
            f'{in_one_line(cfg.model)}: see those in configs/_base_/models.'
        )
    for key, kind in (('work_dir', str), ('strategy', dict)):
        if not isinstance(cfg.get(key), (kind, type(None))):
            raise ConfigError(
                f'{key} of {args.config} must be a {kind.__name__}, got {in_one_line(cfg[key])}: '
                'correct it, or leave it out.'
            )
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg


def read_config(path: str) -> Config:
    """Read a config file.

    Raises:
        ConfigError: If it, or a file it inherits from, is missing or cannot be read.
    """
    if not os.path.isfile(path):
        raise ConfigError(
            f'There is no config file {in_one_line(path)}: give the path of one, such as '
            'configs/mask_rcnn/focalnet_t_1x.py.'
        )
    try:
        cfg = Config.fromfile(path)
        _find_hidden_classes(cfg)
    except RecursionError as error:
        raise ConfigError(
            f'{path} cannot be read as a config: it inherits from itself, or from one that does; '
            'correct its _base_.'
        ) from error
    except (SystemExit, GeneratorExit) as error:
        raise ConfigError(
            f'{path} cannot be read as a config: it calls sys.exit(), which would end the tool '
            'without a result; remove the call.'
        ) from error
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(
            f'{path} cannot be read as a config ({type(error).__name__}: {reason}): '
            'compare it with those in configs/.'
        ) from error
    _set_scope(cfg)
    return cfg


def _find_hidden_classes(cfg: Config) -> None:
    """Import the classes of a config, also where MMEngine does not find them in its own dumps.

    It dumps classes by module, and takes ``mmdet.models.losses.smooth_l1_loss.L1Loss`` for an
    attribute of the function of the module's name.
    """
    for node in find_dicts(list(cfg.values())):
        kind = node.get('type')
        if not isinstance(kind, str) or kind.count('.') < 2:
            continue
        module, _, name = kind.rpartition('.')
        with suppress(ImportError, AttributeError, ValueError):  # such names are reported later
            if not get_object_from_string(kind):
                pkgutil.resolve_name(f'{module}:{name}')
                node['type'] = LazyObject(module, name)


def _set_scope(cfg: Config) -> None:
    """Take the scope from the model's class where a pure Python config specifies none."""
    model = cfg.get('model')
    kind = model.get('type') if isinstance(model, dict) else None
    module = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    scope = str(module).partition('.')[0]
    if scope in ('mmdet', 'mmseg') and not cfg.get('default_scope'):
        cfg.default_scope = scope


def is_first_process(cfg: Config) -> bool:
    """Whether this is the first process of a launch, by the environment of its launcher.

    Args:
        cfg: The config, with ``launcher``.
    """
    ranks = dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    return os.environ.get(ranks.get(cfg.get('launcher'), 'RANK'), '0') == '0'


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
    if strategy_type(cfg) == 'DeepSpeedStrategy':
        raise ConfigError(
            f'--amp is not for DeepSpeed, with which {cfg.filename} trains: set its own, such as '
            'strategy=dict(fp16=dict(enabled=True)), there.'
        )
    wrapper = cfg.optim_wrapper
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        # The scale must follow the gradients of all shards, not those of one process.
        wrapper.use_fsdp = strategy_type(cfg) in FSDP
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
    if strategy_type(cfg) == 'DeepSpeedStrategy':
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
    if type_name(hook) == 'VisualizationHook':  # mmpretrain's
        hook.update(
            enable=True, interval=1, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir
        )
        return
    # Upstream's mmseg draws only every `interval`-th batch, when testing too.
    hook.update(draw=True, interval=1, show=args.show, wait_time=args.wait_time)
    if args.show_dir and type_name(hook) == 'DetVisualizationHook':
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
    if type_name(cfg.tta_model) == 'DetTTAModel':
        _drop_masks(cfg)
    tta_model = cfg.tta_model.copy()
    tta_model.module = cfg.model
    cfg.model = tta_model
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def _drop_masks(cfg: Config) -> None:
    # mmdet merges the boxes of several views and refuses predictions with masks.
    if cfg.model.get('roi_head', {}).get('mask_head'):
        cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for evaluator in find_dicts(cfg.test_evaluator):
            if type_name(evaluator) == 'CocoMetric':
                evaluator.metric = 'bbox'


def find_dicts(node: Any) -> Iterator[dict]:
    """Go through all dicts in a part of a config."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from find_dicts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from find_dicts(value)
