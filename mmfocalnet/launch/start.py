"""The checkpoint that a run starts from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmfocalnet.checkpoints import check_finite, check_sums, load_once, read_checkpoint
from mmfocalnet.checkpoints.report import named
from mmfocalnet.errors import CheckpointError
from mmfocalnet.hooks.checkpoints import MARK
from mmfocalnet.launch.configs import is_first_process
from mmfocalnet.launch.sentences import print_error
from mmfocalnet.models import FocalNetClassifier
from mmfocalnet.models.arguments import in_one_line, is_whole
from mmfocalnet.registration import type_name


def check_start(cfg: Config) -> None:
    """Find and load the checkpoint that a run starts from or resumes.

    Within `mmfocalnet.checkpoints.reading_once` the run uses what was loaded here.

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
        _check_state(cfg.load_from, content)
        _check_average(cfg, content)
        if resume:
            _check_resumable(cfg.load_from, content)
            _take_seed(cfg, content)


def check_fits(model: nn.Module, checkpoint: str) -> None:
    """Make sure that a checkpoint holds every weight of a model that is to be tested.

    Args:
        model: The model as MMEngine built it.
        checkpoint: Its checkpoint, as for `mmfocalnet.checkpoints.fetch`.

    Raises:
        CheckpointError: If weights are missing, have other shapes, are not numbers of the same
            kind (floating point, integer, ...), or are NaN or infinite.
    """
    state = {
        key.removeprefix('module.'): value for key, value in read_checkpoint(checkpoint).items()
    }
    bare = model.module if is_model_wrapper(model) else model
    if isinstance(bare, FocalNetClassifier):
        state = bare.rename(state)
    own = {key.removeprefix('module.'): value for key, value in model.state_dict().items()}
    wrong = [k for k, value in own.items() if k not in state or state[k].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f'{checkpoint} is not a checkpoint of this config: {len(wrong)} weights are '
            f'missing or have another shape ({named(wrong)}); give the one that was trained with '
            'it.'
        )
    odd = [f'{k} {state[k].dtype}' for k, value in own.items() if _kind(state[k]) != _kind(value)]
    if odd:
        raise CheckpointError(
            f'{checkpoint} has {len(odd)} weights of another type than the model '
            f'({named(odd)}): save the weights as floating-point numbers.'
        )
    try:
        check_finite({key: state[key] for key, value in own.items() if torch.isfinite(value).all()})
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint} {error}') from None


def _kind(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return 'boolean'
    if value.is_complex():
        return 'complex'
    return 'floating point' if value.is_floating_point() else 'integer'


def _find_checkpoint(cfg: Config) -> tuple[str | None, Any]:
    """The newest complete checkpoint of a work dir and its content; None if nothing was saved yet.

    One that is missing or damaged is skipped with a message, if there is another.
    """
    work_dir = Path(cfg.work_dir)
    mark = work_dir / MARK
    if not mark.is_file():
        return None, None
    newest = mark.read_text().strip()
    if '://' in newest:
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


def _check_state(path: str, content: Any) -> None:
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f'{path} holds no weights by name: save model.state_dict() instead.')


def _check_resumable(path: str, content: Any) -> None:
    """Look for what MMEngine reads when it resumes."""
    content = content if isinstance(content, dict) else {}
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    hub = content.get('message_hub')
    fault = None
    for key in ('epoch', 'iter'):
        if not is_whole(meta.get(key)) or not 0 <= meta[key] < 2**31:
            fault = f'meta.{key} is {in_one_line(meta.get(key))}, expected an integer from 0 on'
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
    if not is_whole(meta['seed']) or not 0 <= meta['seed'] < 2**32:
        meta['seed'] = None  # MMEngine would pass it on to NumPy
    else:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=meta['seed'])
