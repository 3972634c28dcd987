"""Length of training of a recipe for other data."""

from __future__ import annotations

import math

from mmengine.config import Config

from mmfocalnet.config import find_dicts
from mmfocalnet.registry import type_name

MIN_ITERATIONS = 3000
"""Recipes in epochs run for at least as many iterations on small datasets."""

_TIMES = ('begin', 'end', 'T_max', 'switch_epoch', 'switch_iter')


def set_schedule(cfg: Config, images: int, epochs: int | None, batch: int | None) -> None:
    """Set the number of epochs or iterations, and scale the steps of the schedule.

    Args:
        cfg: The recipe.
        images: Number of training images.
        epochs: Number of epochs; None to choose it.
        batch: Images per process and iteration; None for the recipe's.
    """
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    if batch:
        loader.batch_size = batch
    cfg.auto_scale_lr = cfg.get('auto_scale_lr') or {}
    cfg.auto_scale_lr.setdefault('base_batch_size', 16)
    repeats = [part.times for part in find_dicts(loader) if type_name(part) == 'RepeatDataset']
    per_epoch = math.ceil(images * math.prod(repeats) / loader.batch_size)
    by_epoch = 'max_epochs' in loop
    old = loop.max_epochs if by_epoch else loop.max_iters
    if not epochs and not by_epoch:
        new = old
    else:
        wanted = epochs or max(old, math.ceil(MIN_ITERATIONS / per_epoch))
        new = wanted if by_epoch else wanted * per_epoch
    _scale_steps(cfg, old, new, iterations=new * (per_epoch if by_epoch else 1))
    loop['max_epochs' if by_epoch else 'max_iters'] = new
    if new != old:
        interval = max(1, new // 12)
        loop.val_interval = interval
        checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
        if checkpoint and checkpoint.get('by_epoch', True) == by_epoch:
            checkpoint.interval = interval


def _scale_steps(cfg: Config, old: int, new: int, iterations: int) -> None:
    parts = [*find_dicts(cfg.get('param_scheduler') or []), cfg.train_cfg]
    parts += find_dicts(cfg.get('custom_hooks') or [])
    by_epoch = 'max_epochs' in cfg.train_cfg
    for part in parts:
        if part.get('by_epoch', by_epoch) != by_epoch:  # warm-up in iterations
            if 'end' in part:
                part.end = min(part.end, max(1, iterations // 10))
            continue
        for key in _TIMES:
            if isinstance(part.get(key), int):
                part[key] = round(part[key] * new / old)
        if 'milestones' in part:
            part.milestones = [round(step * new / old) for step in part.milestones]
        if 'dynamic_intervals' in part:
            part.dynamic_intervals = [(round(s * new / old), n) for s, n in part.dynamic_intervals]
