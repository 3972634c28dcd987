"""The checkpoint that a run starts from."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import nn

from mmfocalnet.checkpoints import (
    check_file,
    check_sums,
    fetch,
    load_file,
    read_checkpoint,
    reads_training_checkpoints,
)
from mmfocalnet.errors import CheckpointError
from mmfocalnet.hooks.checkpoints import MARK
from mmfocalnet.models import FocalNetClassifier
from mmfocalnet.registration import type_name


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
    checkpoint = None
    if cfg.get('load_from'):
        checkpoint = _read(fetch(cfg.load_from))
    elif resume:
        cfg.load_from, checkpoint = _find_checkpoint(Path(cfg.work_dir))
    if cfg.get('load_from'):
        _check_average(cfg, checkpoint)
        if resume:
            _take_seed(cfg, checkpoint)


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


def _find_checkpoint(work_dir: Path) -> tuple[str | None, Any]:
    """The newest whole checkpoint of a work dir and its content; None if nothing was saved yet.

    One that is gone or damaged is passed over with one sentence, if there is another.
    """
    mark = work_dir / MARK
    if not mark.is_file():
        return None, None
    named = mark.read_text().strip()
    if '://' in named:
        raise CheckpointError(
            f'{mark} names {named}, in a storage from which --resume does not read: copy it to '
            'this machine and give it as --resume PATH.'
        )
    newest = _at_hand(Path(named), work_dir)
    problems = []
    for path in [newest, *_before(newest)]:
        try:
            if not path.is_file():
                raise CheckpointError(
                    f'{mark} names {str(path)!r}, which is gone: give another one as --resume '
                    f'PATH, or delete {mark} to start afresh.'
                )
            check_sums(path)
            checkpoint = _read(path)
        except CheckpointError as error:
            problems.append(error)
        else:
            if problems and os.environ.get('RANK', '0') == '0':
                said = str(problems[0]).rstrip('.')
                print(f'{said}; going on from {path} instead.', file=sys.stderr)
            return str(path), checkpoint
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


def _check_average(cfg: Config, checkpoint: Any) -> None:
    """MMEngine's EMAHook looks into checkpoints of MMEngine's form only."""
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or ()]
    if 'EMAHook' in hooks and isinstance(checkpoint, dict) and 'state_dict' not in checkpoint:
        raise CheckpointError(
            f'{cfg.load_from} has no state_dict, as checkpoints of MMEngine have, and EMAHook of '
            f'{cfg.filename} looks for one: give it as init_cfg.checkpoint of the model or its '
            'backbone, or leave out the hook.'
        )


def _take_seed(cfg: Config, checkpoint: Any) -> None:
    """Go on with the seed of a run that is resumed, in its sampler too.

    MMEngine goes back to that seed only after the data loader was built with another.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict) and isinstance(meta.get('seed'), int):
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=meta['seed'])
