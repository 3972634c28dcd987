"""Opening checkpoints: what they hold, each file read once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfocalnet.checkpoints.download import FOLDER_CONFIG, FOLDER_WEIGHTS, fetch
from mmfocalnet.checkpoints.safe_load import Loaded, load_file
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import named

_WRAPPERS = ('state_dict', 'model', 'teacher')
_KEPT: ContextVar[dict[Path, Loaded] | None] = ContextVar('kept', default=None)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: The file.
        state: State dict, key to tensor on the CPU.
        metadata: ``meta`` of a ``.pth`` file or the metadata of a ``.safetensors`` file, and
            as ``'config.json'`` that file of the folder, if transformers or timm wrote it.
    """

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any]


@contextmanager
def reading_once() -> Iterator[None]:
    """Read each checkpoint once within: what the checks before a run have read is what it uses."""
    kept = _KEPT.get()
    token = _KEPT.set({} if kept is None else kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def load_once(source: str | os.PathLike) -> Loaded:
    """Load a checkpoint and, within `reading_once`, keep it for whoever loads it next.

    Args:
        source: As for `fetch`.

    Returns:
        Path, content and metadata, as of `load_file`.

    Raises:
        CheckpointError: If it cannot be found, downloaded or read.
    """
    path = fetch(source)
    kept = _KEPT.get()
    if kept is None:
        return load_file(path)
    if path not in kept:
        kept[path] = load_file(path)
    return kept[path]


def take(source: str | os.PathLike, map_location: Any = 'cpu') -> Loaded:
    """Load a checkpoint whose content the caller may change, and keep it no longer.

    Args:
        source: As for `fetch`.
        map_location: As for `torch.load`; content that was kept stays on the CPU. Defaults to
            ``'cpu'``.

    Returns:
        As `load_once`.

    Raises:
        CheckpointError: As `load_once`.
    """
    path = fetch(source)
    kept = (_KEPT.get() or {}).pop(path, None)
    return kept or load_file(path, map_location)


def read_checkpoint(source: str | os.PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; see `open_checkpoint`."""
    return open_checkpoint(source).state


def open_checkpoint(source: str | os.PathLike) -> Checkpoint:
    """Open a checkpoint, its tensors memory-mapped where the format allows.

    Wrappers seen in the wild (``state_dict``, ``model``, ``teacher``) are peeled off.
    Only PyTorch's format before 1.6 cannot be mapped. What is mapped is read from disk when a
    tensor is first used, and its pages belong to the file: the system takes them back when
    memory is short.

    Args:
        source: As for `fetch`.

    Returns:
        The state dict and the metadata.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or holds anything
            but tensors and plain containers.
    """
    path, content, metadata = load_once(source)
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    if path.name in FOLDER_WEIGHTS and (path.parent / FOLDER_CONFIG).is_file():
        metadata[FOLDER_CONFIG] = _read_config(path.parent / FOLDER_CONFIG)
    return Checkpoint(path, _unwrap(content, path), metadata)


def check_has_weights(path: str | os.PathLike, content: Any) -> None:
    """Check that what a checkpoint holds is a state dict, or has one as ``state_dict``.

    Args:
        path: The file, for the message.
        content: As `load_once` returns it.

    Raises:
        CheckpointError: If it does not.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f'{path} holds no weights by name: save model.state_dict() instead.')


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    This reads every tensor once, one after the other and without a copy; for a mapped file
    that is reading it from disk. Its pages count as resident then, once the size of the file
    at most, but stay the file's: loading the weights afterwards finds them in memory.

    Args:
        state: State dict.

    Raises:
        CheckpointError: If there are any; lists at most ten tensors.
    """
    bad = [key for key, value in state.items() if not _is_finite(value)]
    if bad:
        raise CheckpointError(
            f'has NaN or infinite values in {len(bad)} of {len(state)} tensors '
            f'({named(bad)}): take one from before its training diverged; '
            'tools/convert_checkpoint.py --allow-nonfinite converts it as it is.'
        )


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    if value.element_size() == 1:  # PyTorch has no extremes of float8
        value = value.float()
    # One pass without temporaries; both extremes are NaN where one value is.
    return all(torch.isfinite(extreme) for extreme in torch.aminmax(value))


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{path} beside the weights is damaged ({error}): download or copy it again.'
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict):
        wrappers = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
        full = [key for key in wrappers if _holds_tensors(content[key])]
        if len(full) > 1:
            raise CheckpointError(
                f'{path} holds several state dicts ({", ".join(full)}): save the wanted one '
                f'alone, torch.save(checkpoint[{full[0]!r}], PATH).'
            )
        if not wrappers:
            break
        content = content[(full or wrappers)[0]]
    if content == {}:
        raise CheckpointError(f'{path} is empty: save model.state_dict() instead.')
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} holds {type(content).__name__} where a state dict was expected: '
            'save model.state_dict() instead.'
        )
    others = [str(key) for key, value in content.items() if not _is_weight(key, value)]
    if others:
        raise CheckpointError(
            f'{path} holds no state dict under {", ".join(_WRAPPERS)} and has entries '
            f'that are not plain tensors ({named(others)}): save model.state_dict() instead.'
        )
    return content


def _holds_tensors(content: dict) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _is_weight(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
    )
