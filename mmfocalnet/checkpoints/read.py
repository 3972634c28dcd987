"""Finding a checkpoint and reading it without running any code that it may hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import Tensor

from mmfocalnet.checkpoints.report import named
from mmfocalnet.checkpoints.scan import HostilePickleError, check_pickle
from mmfocalnet.errors import CheckpointError

_WRAPPERS = ('state_dict', 'model', 'teacher')
_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
# What transformers and timm call the weights and the settings in a folder of theirs.
_FOLDER_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
_FOLDER_CONFIG = 'config.json'


# The format before PyTorch 1.6: magic number, version, system, content, names of the storages.
_LEGACY_PICKLES = 5
# How many times as large as their file tensors may be that share memory.
_MOST_VIEWS = 8


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: The file.
        state: State dict, key to tensor on the CPU.
        metadata: ``meta`` of a ``.pth`` file or the metadata of a ``.safetensors`` file, and
            as ``'config.json'`` that file of the folder, where it is one of transformers' or
            timm's.
    """

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, Any]


def fetch(source: str | os.PathLike) -> Path:
    """Find a checkpoint on disk; download it once if it is a URL or a Hugging Face id.

    Downloads from URLs go to torch.hub's checkpoint folder under a temporary name and are
    renamed when they have been read as a whole checkpoint; those from the Hugging Face hub go
    to its client's cache. In distributed runs rank 0 goes first and the others find its file;
    on another machine they download their own.

    Args:
        source: Path of a file or of a folder of transformers', http(s) URL, or Hugging Face
            id such as ``'microsoft/focalnet-tiny'`` (``'hf://microsoft/focalnet-tiny'``).

    Returns:
        The path of the file.

    Raises:
        CheckpointError: If there is no such file, or it cannot be downloaded.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(
            f'The checkpoint is {source!r}: give the path of a .pth or .safetensors file, an '
            'http(s) URL or a Hugging Face id.'
        )
    text = os.fspath(source)
    try:
        is_url = urlparse(text).scheme in ('http', 'https')
        path = _cached(text) if is_url else Path(text).expanduser()
        is_file, is_dir = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, no address
        reason = getattr(error, 'strerror', None) or error
        raise CheckpointError(
            f'The checkpoint {text!r} cannot be looked for ({reason}): give the path of a .pth '
            'or .safetensors file, an http(s) URL or a Hugging Face id.'
        ) from error
    if is_url:
        get = partial(_download, text, path)
    elif is_file:
        return path
    elif is_dir:
        return _in_folder(path)
    elif path.exists():
        raise CheckpointError(_no_regular_file(path))
    elif _is_hub_id(text):
        get = partial(_from_hub, text)
    else:
        raise CheckpointError(
            f'There is no checkpoint file {text!r}: give the path of a .pth or .safetensors '
            'file, an http(s) URL or a Hugging Face id.'
        )
    if get_rank() == 0:
        get()
    barrier()
    return get()


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
        CheckpointError: If the file is missing, truncated, no checkpoint, or holds anything
            but tensors and plain containers.
    """
    path = fetch(source)
    content, metadata = _load(path)
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    if path.name in _FOLDER_WEIGHTS and (path.parent / _FOLDER_CONFIG).is_file():
        metadata[_FOLDER_CONFIG] = _read_config(path.parent / _FOLDER_CONFIG)
    return Checkpoint(path, _unwrap(content, path), metadata)


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


def _cached(url: str) -> Path:
    name = Path(urlparse(url).path).name or 'checkpoint.pth'
    # Different projects name their files alike ("pytorch_model.bin").
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return Path(torch.hub.get_dir()) / 'checkpoints' / f'{digest}-{name}'


def _download(url: str, path: Path) -> Path:
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.partial-{os.getpid()}')
    try:
        torch.hub.download_url_to_file(url, str(part), progress=get_rank() == 0)
        _load(part)
        part.replace(path)
    except Exception as error:  # urllib raises a dozen unrelated types here
        reason = str(error).replace(str(part), 'what came')
        raise CheckpointError(
            f'Could not download {url} ({reason}): check the network and the address, or '
            f'download it elsewhere and put it at {path}.'
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _in_folder(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f'{folder} is a folder without {" or ".join(_FOLDER_WEIGHTS)}: give the path of the '
        'checkpoint file in it.'
    )


def _is_hub_id(text: str) -> bool:
    if text.startswith('hf://'):
        return True
    return bool(re.fullmatch(r'[\w.-]+/[\w.-]+', text)) and not text.endswith(_SUFFIXES)


def _from_hub(source: str) -> Path:
    """Get weights, and the settings beside them, from the Hugging Face hub or its cache."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f'There is no checkpoint file {source!r}, and for a Hugging Face id '
            "huggingface_hub is missing: pip install 'mmfocalnet[hf]'."
        ) from error
    get = partial(huggingface_hub.hf_hub_download, source.removeprefix('hf://'))
    try:
        path = _first_of(_FOLDER_WEIGHTS, partial(get, local_files_only=True))
        if path is None:
            # First, so that weights in the cache have it beside them if there is one.
            _first_of((_FOLDER_CONFIG,), get)
            path = _first_of(_FOLDER_WEIGHTS, get)
    except Exception as error:  # the client raises its own, its transport's and ValueErrors
        reason = ' '.join(str(error).split())
        raise CheckpointError(
            f'There is no checkpoint file {source!r}, and it could not be had from the Hugging '
            f'Face hub either ({type(error).__name__}: {reason}): check the network and the id.'
        ) from error
    if path is None:
        raise CheckpointError(
            f'{source!r} on the Hugging Face hub has no {" or ".join(_FOLDER_WEIGHTS)}: download '
            'its checkpoint file and give the path.'
        )
    return path


def _first_of(names: tuple[str, ...], get: partial[str]) -> Path | None:
    """The first of some files that a repository, or its cache, has."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            return Path(get(name))
        except EntryNotFoundError as error:
            offline = isinstance(error, LocalEntryNotFoundError)
            if offline and 'local_files_only' not in get.keywords:
                raise  # the client has tried for long; the next name would take as long
    return None


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{path} beside the weights is damaged ({error}): download or copy it again.'
        ) from error


def _load(path: Path) -> tuple[Any, Any]:
    """Load a file of any known format: its content and metadata."""
    kind = _file_format(path)
    if kind == 'safetensors':
        return _load_safetensors(path)
    content = _load_pytorch(path, is_zip=kind == 'zip')
    return content, content.get('meta') if isinstance(content, dict) else None


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the safetensors package: pip install 'mmfocalnet[hf]'."
        ) from error
    try:
        with safe_open(str(path), framework='pt') as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if 'mmfocalnet' in metadata:  # the format's own metadata are strings
            metadata['mmfocalnet'] = json.loads(metadata['mmfocalnet'])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(_truncated(path)) from error
    return state, metadata


def load_file(path: Path) -> Any:
    """Load a file of PyTorch's, memory-mapped where the format allows, running none of its code.

    Besides tensors and plain containers only the harmless types of MMEngine's own training
    checkpoints are allowed (PyTorch 2.6 and later can be told of them).

    Args:
        path: The file.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        CheckpointError: If it is truncated, no checkpoint of PyTorch's, or holds other
            objects.
    """
    return _load_pytorch(path, is_zip=check_file(path))


def _load_pytorch(path: Path, is_zip: bool) -> Any:
    try:
        _check_pickles(path, is_zip)
        with _training_types_allowed():
            # Only the zip format can be mapped; the one before PyTorch 1.6 is read whole.
            content = torch.load(str(path), map_location='cpu', weights_only=True, mmap=is_zip)
    except HostilePickleError as error:
        raise CheckpointError(
            f'{path} is no PyTorch checkpoint, or one made to do harm ({error}): take it from '
            'another source.'
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, error)) from error
    except Exception as error:  # damaged bytes surface as almost any type
        raise CheckpointError(_truncated(path)) from error
    size, most = path.stat().st_size, _MOST_VIEWS * path.stat().st_size
    dense = (tensor for tensor in _tensors(content) if tensor.layout == torch.strided)
    if sum(tensor.nbytes for tensor in dense if not tensor.is_meta) > most:
        raise CheckpointError(
            f'{path} ({size} bytes) is damaged: its tensors are said to be far larger than the '
            'file; download or copy it again.'
        )
    return content


def _check_pickles(path: Path, is_zip: bool) -> None:
    """Look through the instructions of a file before PyTorch follows them."""
    if not is_zip:
        if tarfile.is_tarfile(path):  # PyTorch before 0.2; the others would unpack it
            raise HostilePickleError('it is a tar archive as well')
        with path.open('rb') as file:
            for _ in range(_LEGACY_PICKLES):
                check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type for entry in entries) or unpacked > path.stat().st_size:
        raise HostilePickleError('its archive is compressed')
    # PyTorch's own reader, because two readers may understand a broken archive differently.
    reader = torch._C.PyTorchFileReader(str(path))
    check_pickle(io.BytesIO(reader.get_record('data.pkl')))


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, each once."""
    seen, left = set(), [content]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            yield node
        elif isinstance(node, dict):
            left.extend(node.values())
        elif isinstance(node, (list, tuple, set)):
            left.extend(node)


def check_file(path: Path) -> bool:
    """Look at the outside of a checkpoint file of PyTorch's, without reading its content.

    Args:
        path: The file.

    Returns:
        Whether it has PyTorch's zip format, which can be memory-mapped.

    Raises:
        CheckpointError: If it is a web page, cut short, or of another format.
    """
    kind = _file_format(path)
    if kind == 'safetensors':
        raise CheckpointError(
            f'{path} is a safetensors file, which MMEngine does not read: convert it first, '
            f'python tools/convert_checkpoint.py {path} NEW.pth --to ours.'
        )
    return kind == 'zip'


def check_sums(path: Path) -> None:
    """Read a file of PyTorch's zip format through and compare its checksums.

    Args:
        path: The file; one of another format has none and passes.

    Raises:
        CheckpointError: If bytes of it were changed.
    """
    if check_file(path):
        try:
            with zipfile.ZipFile(path) as file:
                changed = file.testzip()
        except Exception as error:  # damaged bytes surface as almost any type
            raise CheckpointError(_truncated(path)) from error
        if changed:
            raise CheckpointError(f'{path} is damaged (in {changed}): copy it again.')


def _file_format(path: Path) -> str:
    """Tell ``'safetensors'`` from PyTorch's ``'zip'`` and, before 1.6, ``'pickle'``."""
    if path.exists() and not path.is_file():
        raise CheckpointError(_no_regular_file(path))
    try:
        with path.open('rb') as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read ({error.strerror}).') from error
    # The first eight bytes are the length of a JSON header; any byte may be among them.
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') + 8 <= path.stat().st_size:
        return 'safetensors'
    if start.removeprefix(b'\xef\xbb\xbf').lstrip()[:1] == b'<':
        raise CheckpointError(
            f'{path} is a web page (HTML), not a checkpoint: the download was redirected; '
            'delete it and fetch the file itself.'
        )
    with suppress(zipfile.BadZipFile):  # an end that speaks of several disks
        if start.startswith(b'PK') and zipfile.is_zipfile(path):
            return 'zip'
    if start.startswith(b'\x80'):
        return 'pickle'
    raise CheckpointError(_truncated(path))


def reads_training_checkpoints() -> bool:
    """Whether this PyTorch (2.6 or later) can be told of MMEngine's types by name."""
    return digit_version(torch.__version__) >= digit_version('2.6')


def _training_types_allowed() -> AbstractContextManager:
    if not reads_training_checkpoints():
        return nullcontext()
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    numpy_functions = [
        (function, f'{module}.multiarray.{name}')
        for module in ('numpy.core', 'numpy._core')  # the name before and since NumPy 2
        for name, function in (('_reconstruct', _empty_array), ('scalar', multiarray.scalar))
    ]
    kinds = (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)
    return torch.serialization.safe_globals(
        [
            HistoryBuffer,
            (_history_method, 'builtins.getattr'),
            (_history_method, '__builtin__.getattr'),
            np.ndarray,
            (_number_type, 'numpy.dtype'),
            *{type(np.dtype(kind)) for kind in kinds},
            *numpy_functions,
        ]
    )


def _history_method(owner: Any, name: str) -> Any:
    """All that a training checkpoint needs `getattr` for: the statistics of its loss history."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr of {owner!r}')
    return getattr(HistoryBuffer, name)


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """What NumPy begins an array with; its content follows, and sets shape and type."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f'GLOBAL _reconstruct of {kind!r}')
    return np.ndarray(shape, code)


def _number_type(code: Any, *flags: bool) -> np.dtype:
    """A type of numbers; others may have any size, or hold objects."""
    dtype = np.dtype(code, *flags)
    if dtype.kind not in 'biuf':
        raise pickle.UnpicklingError(f'GLOBAL dtype of {dtype.kind}')
    return dtype


def _no_regular_file(path: Path) -> str:
    # A pipe would be waited for, a device might never end.
    return f'{path} is no regular file: save the checkpoint to one and give its path.'


def _truncated(path: Path) -> str:
    kind = 'safetensors' if path.suffix == '.safetensors' else 'PyTorch'
    return (
        f'{path} ({path.stat().st_size} bytes) is truncated or is no {kind} checkpoint: '
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
            f'{path} holds no state dict under {", ".join(_WRAPPERS)} and has entries that are '
            f'no plain tensors ({named(others)}): save model.state_dict() instead.'
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
