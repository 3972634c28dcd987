"""Finding a checkpoint and reading it without running any code that it may hold."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import Tensor

from mmfocalnet.errors import CheckpointError

_WRAPPERS = ('state_dict', 'model', 'teacher')


def fetch(source: str | os.PathLike) -> Path:
    """Find a checkpoint on disk; download it once if it is a URL.

    Downloads go to torch.hub's checkpoint folder under a temporary name and are renamed when
    they have been read as a whole checkpoint. In distributed runs rank 0 goes first and the
    others find its file; on another machine they download their own.

    Args:
        source: Path or http(s) URL.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: If there is no such file, or it cannot be downloaded.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(
            f'The checkpoint is {source!r}: give the path of a .pth file or an http(s) URL.'
        )
    text = os.fspath(source)
    if urlparse(text).scheme not in ('http', 'https'):
        if not Path(text).expanduser().is_file():
            raise CheckpointError(
                f'There is no checkpoint file {text!r}: give the path of a .pth file '
                'or an http(s) URL.'
            )
        return Path(text).expanduser()
    path = _cached(text)
    if get_rank() == 0:
        _download(text, path)
    barrier()
    _download(text, path)
    return path


def read_checkpoint(source: str | os.PathLike) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, memory-mapped where the format allows.

    Wrappers seen in the wild (``state_dict``, ``model``, ``teacher``) are peeled off.

    Args:
        source: Path or http(s) URL.

    Returns:
        The state dict, key to tensor on the CPU.

    Raises:
        CheckpointError: If the file is missing, truncated, no checkpoint, or holds anything
            but tensors and plain containers.
    """
    path = fetch(source)
    return _unwrap(load_file(path), path)


def _cached(url: str) -> Path:
    name = Path(urlparse(url).path).name or 'checkpoint.pth'
    # Different projects name their files alike ("pytorch_model.bin").
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(torch.hub.get_dir()) / 'checkpoints' / f'{digest}-{name}'


def _download(url: str, path: Path) -> None:
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial-{os.getpid()}')
    try:
        torch.hub.download_url_to_file(url, str(partial), progress=get_rank() == 0)
        load_file(partial)
        partial.replace(path)
    except Exception as error:  # urllib raises a dozen unrelated types here
        reason = str(error).replace(str(partial), 'what came')
        raise CheckpointError(
            f'Could not download {url} ({reason}): check the network and the address, or '
            f'download it elsewhere and put it at {path}.'
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def load_file(path: Path) -> Any:
    """Load a checkpoint file, memory-mapped where the format allows, running none of its code.

    Besides tensors and plain containers only the harmless types of MMEngine's own training
    checkpoints are allowed (PyTorch 2.6 and later can be told of them).

    Args:
        path: The file.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        CheckpointError: If it is truncated, no checkpoint, or holds other objects.
    """
    is_zip = check_file(path)
    try:
        with _training_types_allowed():
            # Only the zip format can be mapped; the one before PyTorch 1.6 is read whole.
            return torch.load(str(path), map_location='cpu', weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, error)) from error
    except Exception as error:  # damaged bytes surface as almost any type
        raise CheckpointError(_truncated(path)) from error


def check_file(path: Path) -> bool:
    """Look at the outside of a checkpoint file, without reading its content.

    Args:
        path: The file.

    Returns:
        Whether it has PyTorch's zip format, which can be memory-mapped.

    Raises:
        CheckpointError: If it is a web page, a zip archive cut short or neither of the formats.
    """
    with path.open('rb') as file:
        start = file.read(512)
    if start.removeprefix(b'\xef\xbb\xbf').lstrip()[:1] == b'<':
        raise CheckpointError(
            f'{path} is a web page (HTML), not a checkpoint: the download was redirected; '
            'delete it and fetch the file itself.'
        )
    is_zip = start.startswith(b'PK')
    is_pickle = start.startswith(b'\x80')
    if not (is_pickle or (is_zip and zipfile.is_zipfile(path))):
        raise CheckpointError(_truncated(path))
    return is_zip


def reads_training_checkpoints() -> bool:
    """Whether this PyTorch (2.6 or later) can be told of MMEngine's types by name."""
    return digit_version(torch.__version__) >= digit_version('2.6')


def _training_types_allowed() -> AbstractContextManager:
    if not reads_training_checkpoints():
        return nullcontext()
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    numpy_functions = [
        (getattr(multiarray, function), f'{module}.multiarray.{function}')
        for module in ('numpy.core', 'numpy._core')  # the name before and since NumPy 2
        for function in ('_reconstruct', 'scalar')
    ]
    kinds = (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)
    return torch.serialization.safe_globals(
        [
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            (_history_method, '__builtin__.getattr'),
            np.ndarray,
            np.dtype,
            *{type(np.dtype(kind)) for kind in kinds},
            *numpy_functions,
        ]
    )


def _history_method(owner: Any, name: str) -> Any:
    """All that a training checkpoint needs `getattr` for: the statistics of its loss history."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr of {owner!r}')
    return getattr(HistoryBuffer, name)


def _truncated(path: Path) -> str:
    return (
        f'{path} ({path.stat().st_size} bytes) is truncated or is no PyTorch checkpoint: '
        'download or copy it again.'
    )


def _refused(path: Path, error: Exception) -> str:
    # PyTorch's wording: "GLOBAL name was not an allowed global", before 2.4 "Unsupported class".
    found = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))
    if not found:
        return _truncated(path)
    return (
        f'{path} holds a Python object ({found[1]}) besides tensors, which is refused because '
        'unpickling it could run code: save its state dict alone, '
        "torch.save(checkpoint['state_dict'], PATH), in the program that wrote it."
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f'{path} holds {type(content).__name__} where a state dict was expected: '
            'save model.state_dict() instead.'
        )
    others = [str(key) for key, value in content.items() if not _is_weight(key, value)]
    if others:
        raise CheckpointError(
            f'{path} holds no state dict under {", ".join(_WRAPPERS)} and has entries that are '
            f'no plain tensors ({", ".join(others[:10])}): save model.state_dict() instead.'
        )
    return content


def _is_weight(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized)
    )
