"""Open checkpoints: state dict and metadata, each file read once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfocalnet.checkpoints.dino import find_detector, to_mmdet
from mmfocalnet.checkpoints.download import FOLDER_CONFIG, FOLDER_WEIGHTS, fetch
from mmfocalnet.checkpoints.safe_load import Loaded, load_file
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import join_keys

_WRAPPERS = ('state_dict', 'model', 'teacher')
_CACHE: ContextVar[dict[Path, Loaded] | None] = ContextVar('cache', default=None)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        name: Path, URL or Hugging Face id that the user gave; error messages start with it.
        state: State dict, key to tensor on the CPU.
        metadata: ``meta`` of a ``.pth`` file or the metadata of a ``.safetensors`` file; its key
            ``'config.json'`` is the content of that file in a folder of transformers or timm.
    """

    name: str
    state: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def cached_reads() -> Iterator[None]:
    """Read each checkpoint once in this context, so that a run uses what its checks have read."""
    cache = _CACHE.get()
    token = _CACHE.set({} if cache is None else cache)
    try:
        yield
    finally:
        _CACHE.reset(token)


def load_once(source: str | os.PathLike) -> Loaded:
    """Load a checkpoint; in `cached_reads`, keep its content for the next call.

    Args:
        source: As for `fetch`.

    Returns:
        Path, content and metadata, as of `load_file`.

    Raises:
        CheckpointError: If it is not found, cannot be downloaded or cannot be read.
    """
    path = fetch(source)
    cache = _CACHE.get()
    if cache is None:
        return load_file(path)
    if path not in cache:
        cache[path] = load_file(path)
    return cache[path]


def pop_cached(source: str | os.PathLike, map_location: Any = 'cpu') -> Loaded:
    """Like `load_once`, but remove the content from the cache, so that the caller may change it.

    Content that was not cached is loaded to ``map_location``, as of `torch.load`.
    """
    path = fetch(source)
    cached = (_CACHE.get() or {}).pop(path, None)
    return cached or load_file(path, map_location)


def read_checkpoint(source: str | os.PathLike) -> Mapping[str, Tensor]:
    """Read the state dict of a checkpoint; see `open_checkpoint`.

    A published DINO detector is renamed to mmdet's names.
    """
    state = open_checkpoint(source).state
    return to_mmdet(state, name=os.fspath(source)) if find_detector(state) else state


def open_checkpoint(source: str | os.PathLike) -> Checkpoint:
    """Open a checkpoint, its tensors memory-mapped where the format allows.

    The state dict may be nested below ``state_dict``, ``model`` or ``teacher``. PyTorch's format
    before 1.6 cannot be mapped. A mapped tensor is read from disk when it is first used, and the
    operating system can evict its pages when memory is short.

    Args:
        source: As for `fetch`.

    Returns:
        The state dict and the metadata.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or contains objects
            other than tensors and plain containers.
    """
    path, content, metadata = load_once(source)
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    config = path.parent / FOLDER_CONFIG
    if path.name in FOLDER_WEIGHTS and config.is_file():
        try:
            metadata[FOLDER_CONFIG] = json.loads(config.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f'{config} beside the weights is damaged ({error}). Download or copy it again.'
            ) from error
    return Checkpoint(os.fspath(source), unwrap(content, path), metadata)


def check_has_weights(path: str | os.PathLike, content: Any) -> None:
    """Check that a checkpoint is a state dict, or contains one as ``state_dict``.

    Args:
        path: The file, for the message.
        content: As `load_once` returns it.

    Raises:
        CheckpointError: If it is not.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f'{path} contains no state dict. Save model.state_dict() instead.')


def check_finite(state: Mapping[str, Tensor], name: str = 'The checkpoint') -> None:
    """Check that no weight is NaN or infinite.

    Every tensor is read once, without a copy. The pages of a mapped file stay in the page cache,
    where loading the weights afterwards finds them.

    Args:
        state: State dict.
        name: Name of the checkpoint, for the message. Defaults to ``'The checkpoint'``.

    Raises:
        CheckpointError: If there are any; lists at most ten tensors.
    """
    bad = [key for key, value in state.items() if not _is_finite(value)]
    if bad:
        raise CheckpointError(
            f'{name} has NaN or infinite values in {len(bad)} of {len(state)} tensors '
            f'({join_keys(bad)}). Use a checkpoint from before training diverged.'
        )


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    # aminmax does not support float8, nor float16 in PyTorch 2.1.
    if value.element_size() == 1 or (value.dtype == torch.float16 and torch.__version__ < '2.3'):
        value = value.float()
    # One pass without temporaries; NaN propagates to both extremes.
    return all(torch.isfinite(extreme) for extreme in torch.aminmax(value))


def published_detector(content: Any, path: str | os.PathLike) -> dict[str, Tensor] | None:
    """Find the weights of a published DINO detector in the content of a file.

    Args:
        content: As `load_once` returns it.
        path: The file.

    Returns:
        The state dict in the published names; None for any other content.
    """
    try:
        state = unwrap(content, path)
    except CheckpointError:
        return None
    return state if find_detector(state) else None


def unwrap(content: Any, path: str | os.PathLike) -> dict[str, Tensor]:
    """Find the state dict in the content of a file; raise `CheckpointError` if there is none."""
    while isinstance(content, dict):
        wrappers = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
        full = [key for key in wrappers if _has_tensors(content[key])]
        if len(full) > 1:
            raise CheckpointError(
                f'{path} contains several state dicts ({", ".join(full)}). Save one of them alone: '
                f'torch.save(checkpoint[{full[0]!r}], PATH).'
            )
        if not wrappers:
            break
        content = content[(full or wrappers)[0]]
    if content == {}:
        raise CheckpointError(f'{path} is empty. Save model.state_dict() instead.')
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} contains a {type(content).__name__}, expected a state dict. Save '
            'model.state_dict() instead.'
        )
    others = [str(key) for key, value in content.items() if not _is_weight(key, value)]
    if others:
        raise CheckpointError(
            f'{path} has no state dict under {", ".join(_WRAPPERS)}, and its entries '
            f'{join_keys(others)} are not dense tensors. Save model.state_dict() instead.'
        )
    return content


def _has_tensors(content: dict) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _is_weight(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
    )
