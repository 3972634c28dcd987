"""Loading the checkpoint that a run starts from or resumes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmfocalnet.arguments import is_integer
from mmfocalnet.checkpoints import check_has_weights, load_once, published_detector
from mmfocalnet.cli.error_handling import print_error
from mmfocalnet.config import is_first_process
from mmfocalnet.engine.hooks.atomic_checkpoint import LAST_CHECKPOINT
from mmfocalnet.errors import CheckpointError
from mmfocalnet.files import is_url
from mmfocalnet.models.weight_checks import check_position_encoding
from mmfocalnet.registry import type_name
from mmfocalnet.text import short_repr


def load_initial_checkpoint(cfg: Config) -> None:
    """Find and load the checkpoint that a run starts from or resumes.

    Within `mmfocalnet.checkpoints.cached_reads` the run uses what is loaded here.

    Args:
        cfg: The config. ``load_from`` is set to a local path: the given checkpoint, or when
            resuming without one, the newest complete checkpoint of the work dir; if there is none,
            ``resume`` is set to False. To resume, ``randomness.seed`` is set to the seed of the
            checkpoint.

    Raises:
        CheckpointError: If it is missing, cannot be downloaded or read, or cannot be resumed.
    """
    resume = cfg.get('resume')
    content = None
    if cfg.get('load_from'):
        path, content, _ = load_once(cfg.load_from)
        # Not the URL, which could serve another file at the next read.
        cfg.load_from = str(path)
    elif resume:
        cfg.load_from, content = _find_checkpoint(cfg)
        cfg.resume = cfg.load_from is not None
        if not cfg.resume and is_first_process(cfg):
            print_error(f'{cfg.work_dir} has no checkpoint to resume: this is a new run.')
    if cfg.get('load_from'):
        check_has_weights(cfg.load_from, content)
        check_position_encoding(cfg.get('model') or {}, content, cfg.load_from)
        _check_ema(cfg, content)
        if resume:
            _check_resumable(cfg.load_from, content)
            _use_seed(cfg, content)


def _find_checkpoint(cfg: Config) -> tuple[str | None, Any]:
    """Find the newest complete checkpoint of a work dir; None if nothing was saved yet.

    A missing or damaged checkpoint is skipped with a message if there is an older one.

    Returns:
        Its path and content.
    """
    work_dir = Path(cfg.work_dir)
    pointer = work_dir / LAST_CHECKPOINT
    if not pointer.is_file():
        return None, None
    newest = pointer.read_text().strip()
    if is_url(newest):
        raise CheckpointError(
            f'{pointer} points to {newest}, which --resume cannot read: copy '
            'it to this machine and specify it as --resume PATH.'
        )
    newest = _in_work_dir(Path(newest), work_dir)
    problems = []
    for path in [newest, *_older(newest)]:
        try:
            if not path.is_file():
                raise CheckpointError(
                    f'{pointer} points to {str(path)!r}, which does not exist: specify another '
                    f'checkpoint as --resume PATH, or delete {pointer} to start anew.'
                )
            content = load_once(path).content
        except CheckpointError as error:
            problems.append(error)
        else:
            if problems and is_first_process(cfg):
                reason = str(problems[0]).rstrip('.')
                print_error(f'{reason}; resuming from {path} instead.')
            return str(path), content
    raise problems[0]


def _in_work_dir(path: Path, work_dir: Path) -> Path:
    """The checkpoint, or if it does not exist, the file with this name in the work dir."""
    return path if path.is_file() or not path.name else work_dir / path.name


def _older(newest: Path) -> list[Path]:
    """The checkpoints in the same folder with the same name and a lower number, newest first."""
    numbers = {}
    for path in (newest, *newest.parent.glob('*.*')):
        if name := re.fullmatch(r'(\D*)(\d+)(\.\w+)', path.name):
            numbers[path] = (name[1], name[3], int(name[2]))
    if newest not in numbers:
        return []
    *kind, number = numbers[newest]
    older = [path for path in numbers if [*numbers[path][:2]] == kind and numbers[path][2] < number]
    return sorted(older, key=lambda path: numbers[path][2], reverse=True)


def _check_ema(cfg: Config, content: Any) -> None:
    """Check what MMEngine's ``EMAHook`` needs: a checkpoint in MMEngine's format."""
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or ()]
    without = isinstance(content, dict) and 'state_dict' not in content
    # MMEngine loads a published DINO detector in its own format.
    if 'EMAHook' in hooks and without and published_detector(content, cfg.load_from) is None:
        raise CheckpointError(
            f'{cfg.load_from} has no state_dict, which EMAHook of {cfg.filename} needs: specify '
            'it as init_cfg.checkpoint of the model or its backbone, or remove the hook.'
        )


def _check_resumable(path: str, content: Any) -> None:
    """Check what MMEngine reads when it resumes."""
    content = content if isinstance(content, dict) else {}
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    hub = content.get('message_hub')
    fault = None
    for key in ('epoch', 'iter'):
        if not is_integer(meta.get(key)) or not 0 <= meta[key] < 2**31:
            fault = f'meta.{key} is {short_repr(meta.get(key))}, expected an integer of at least 0'
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub, dict) or not isinstance(hub.get(key), dict):
            fault = f'message_hub.{key} is not a dict'
    if not isinstance(content.get('state_dict'), dict):
        fault = 'state_dict is not a dict'
    if fault:
        raise CheckpointError(
            f'{path} is not a checkpoint to resume from ({fault}): start from its weights '
            'with load_from and without --resume, or specify a checkpoint of a training run.'
        )


def _use_seed(cfg: Config, content: Any) -> None:
    """Use the seed of the checkpoint, also in the sampler.

    MMEngine restores it only after the data loader was built with another one.
    """
    meta = content['meta']
    if 'seed' not in meta:
        return
    if not is_integer(meta['seed']) or not 0 <= meta['seed'] < 2**32:
        meta['seed'] = None  # MMEngine would pass it to NumPy
    else:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=meta['seed'])
