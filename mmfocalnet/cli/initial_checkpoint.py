"""The checkpoint that a run starts from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmfocalnet.arguments import is_integer
from mmfocalnet.checkpoints import check_has_weights, check_sums, load_once
from mmfocalnet.cli.error_handling import print_error
from mmfocalnet.config import is_first_process
from mmfocalnet.engine.hooks.checkpoint import MARK
from mmfocalnet.errors import CheckpointError
from mmfocalnet.files import is_url
from mmfocalnet.registry import type_name
from mmfocalnet.text import short_repr


def check_start(cfg: Config) -> None:
    """Find and load the checkpoint that a run starts from or resumes.

    Within `mmfocalnet.checkpoints.cached_reads` the run uses what was loaded here.

    Args:
        cfg: The config. ``load_from`` is set to the path of the file; where the run resumes the
            newest checkpoint of its work dir, to the newest that is complete. Where it resumes,
            the seed is set to that of the checkpoint.

    Raises:
        CheckpointError: If it is missing, cannot be downloaded or read, or has no training to
            resume.
    """
    resume = cfg.get('resume')
    content = None
    if cfg.get('load_from'):
        path, content, _ = load_once(cfg.load_from)
        # Not the URL again, under which the server could have another file by now.
        cfg.load_from = str(path)
    elif resume:
        cfg.load_from, content = _find_checkpoint(cfg)
    if cfg.get('load_from'):
        check_has_weights(cfg.load_from, content)
        _check_average(cfg, content)
        if resume:
            _check_resumable(cfg.load_from, content)
            _take_seed(cfg, content)


def _find_checkpoint(cfg: Config) -> tuple[str | None, Any]:
    """The newest complete checkpoint of a work dir and its content; None if nothing was saved yet.

    One that is missing or damaged is skipped with a message, if there is another.
    """
    work_dir = Path(cfg.work_dir)
    mark = work_dir / MARK
    if not mark.is_file():
        return None, None
    newest = mark.read_text().strip()
    if is_url(newest):
        raise CheckpointError(
            f'{mark} names {newest}, in a storage from which --resume does not read: copy '
            'it to this machine and give it as --resume PATH.'
        )
    newest = _at_hand(Path(newest), work_dir)
    problems = []
    for path in [newest, *_before(newest)]:
        try:
            if not path.is_file():
                raise CheckpointError(
                    f'{mark} names {str(path)!r}, which is gone: give another one as --resume '
                    f'PATH, or delete {mark} to start afresh.'
                )
            check_sums(path)
            content = load_once(path).content
        except CheckpointError as error:
            problems.append(error)
        else:
            if problems and is_first_process(cfg):
                reason = str(problems[0]).rstrip('.')
                print_error(f'{reason}; resuming from {path} instead.')
            return str(path), content
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


def _check_average(cfg: Config, content: Any) -> None:
    """MMEngine's EMAHook looks into checkpoints of MMEngine's form only."""
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or ()]
    if 'EMAHook' in hooks and isinstance(content, dict) and 'state_dict' not in content:
        raise CheckpointError(
            f'{cfg.load_from} has no state_dict, as checkpoints of MMEngine have, and EMAHook of '
            f'{cfg.filename} looks for one: give it as init_cfg.checkpoint of the model or its '
            'backbone, or leave out the hook.'
        )


def _check_resumable(path: str, content: Any) -> None:
    """Look for what MMEngine reads when it resumes."""
    content = content if isinstance(content, dict) else {}
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    hub = content.get('message_hub')
    fault = None
    for key in ('epoch', 'iter'):
        if not is_integer(meta.get(key)) or not 0 <= meta[key] < 2**31:
            fault = f'meta.{key} is {short_repr(meta.get(key))}, expected an integer from 0 on'
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub, dict) or not isinstance(hub.get(key), dict):
            fault = f'message_hub.{key} is not a dict'
    if not isinstance(content.get('state_dict'), dict):
        fault = 'state_dict is not a dict'
    if fault:
        raise CheckpointError(
            f'{path} is not a checkpoint to resume from ({fault}): start from its weights '
            'with load_from and without --resume, or give a checkpoint that a training saved.'
        )


def _take_seed(cfg: Config, content: Any) -> None:
    """Resume with the seed of the checkpoint, in the sampler too.

    MMEngine takes that seed only after the data loader was built with another one.
    """
    meta = content['meta']
    if 'seed' not in meta:
        return
    if not is_integer(meta['seed']) or not 0 <= meta['seed'] < 2**32:
        meta['seed'] = None  # MMEngine would pass it on to NumPy
    else:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=meta['seed'])
