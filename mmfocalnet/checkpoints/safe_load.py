"""Loading checkpoint files of any format without running any code that they may hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version
from torch import Tensor

from mmfocalnet.checkpoints.scan import HostilePickleError, check_pickle
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import shown

# The format before PyTorch 1.6: magic number, version, system, content, names of the storages.
_LEGACY_PICKLES = 5
# How many times as large as their file tensors may be that share memory.
_MAX_VIEWS = 8


class Loaded(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        content: What was saved, most often a dict; of a safetensors file the state dict.
        metadata: ``meta`` of that dict, or the metadata of a safetensors file; of any type.
    """

    path: Path
    content: Any
    metadata: Any


def load_file(path: Path, map_location: Any = 'cpu') -> Loaded:
    """Load a checkpoint file, memory-mapped where the format allows, running none of its code.

    Besides tensors and plain containers only the harmless types of MMEngine's own training
    checkpoints are allowed.

    Args:
        path: The file.
        map_location: As for `torch.load`. Defaults to ``'cpu'``.

    Returns:
        Its content and its metadata.

    Raises:
        CheckpointError: If it is truncated, not a checkpoint, or holds other objects.
    """
    # A link is followed once, so that all of the following read the same file.
    real = Path(os.path.realpath(path))
    try:
        content, metadata = _load(real, map_location)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(real), str(path))) from error
    return Loaded(path, content, metadata)


def _load(path: Path, map_location: Any) -> tuple[Any, Any]:
    kind = _file_format(path)
    if kind == 'safetensors':
        return _load_safetensors(path, map_location)
    content = _load_pytorch(path, kind == 'zip', map_location)
    return content, content.get('meta') if isinstance(content, dict) else None


def _load_safetensors(path: Path, map_location: Any) -> tuple[Any, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the safetensors package: pip install 'mmfocalnet[hf]'."
        ) from error
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    try:
        with safe_open(str(path), framework='pt', device=str(device)) as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if 'mmfocalnet' in metadata:  # the format's own metadata are strings
            metadata['mmfocalnet'] = json.loads(metadata['mmfocalnet'])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(_truncated(path)) from error
    return state, metadata


def _load_pytorch(path: Path, is_zip: bool, map_location: Any) -> Any:
    try:
        _check_pickles(path, is_zip)
        # Only the zip format can be mapped; the one before PyTorch 1.6 is read completely.
        content = _torch_load(str(path), map_location=map_location, mmap=is_zip)
    except HostilePickleError as error:
        raise CheckpointError(
            f'{path} is not a PyTorch checkpoint, or is malicious ({error}): take it from '
            'another source.'
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused(path, error)) from error
    except Exception as error:  # damaged bytes surface as almost any type
        raise CheckpointError(_truncated(path)) from error
    size = path.stat().st_size
    dense = (tensor for tensor in _tensors(content) if tensor.layout == torch.strided)
    if sum(tensor.nbytes for tensor in dense if not tensor.is_meta) > _MAX_VIEWS * size:
        raise CheckpointError(
            f'{path} ({size} bytes) is damaged: its tensors claim to be far larger than '
            'the file; download or copy it again.'
        )
    return content


def _torch_load(path: str, **settings: Any) -> Any:
    allowed = _training_types()
    if digit_version(torch.__version__) >= digit_version('2.6'):
        pairs = [(value, name) for name, value in allowed.items()]
        with torch.serialization.safe_globals(pairs):
            return torch.load(path, weights_only=True, **settings)
    # Earlier versions cannot be given types under other names. The same names are enforced by a
    # pickle module that finds nothing else.
    from torch._weights_only_unpickler import _get_allowed_globals

    restricted = pickle_module({**_get_allowed_globals(), **allowed})
    return torch.load(path, weights_only=False, pickle_module=restricted, **settings)


def pickle_module(allowed: dict[str, Any]) -> SimpleNamespace:
    """What `torch.load` takes in place of `pickle`, which finds the allowed names only.

    Args:
        allowed: Types and functions by their names in pickles.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

    def load(file: BinaryIO, **settings: Any) -> Any:
        return Unpickler(file, **settings).load()

    return SimpleNamespace(__name__='restricted', Unpickler=Unpickler, load=load)


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
    if 'constants.pkl' in reader.get_all_records():  # which older versions of PyTorch would run
        raise HostilePickleError('it holds TorchScript code')
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


def check_sums(path: Path) -> None:
    """Read a file of PyTorch's zip format through and compare its checksums.

    Args:
        path: The file; one of another format has no checksums and passes.

    Raises:
        CheckpointError: If bytes of it were changed.
    """
    if _file_format(path) == 'zip':
        try:
            with zipfile.ZipFile(path) as file:
                changed = file.testzip()
        except Exception as error:  # damaged bytes surface as almost any type
            raise CheckpointError(_truncated(path)) from error
        if changed:
            raise CheckpointError(f'{path} is damaged (in {shown(changed)}): copy it again.')


def _file_format(path: Path) -> str:
    """Tell ``'safetensors'`` from PyTorch's ``'zip'`` and, before 1.6, ``'pickle'``."""
    if path.exists() and not path.is_file():
        raise CheckpointError(no_regular_file(path))
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


def _training_types() -> dict[str, Any]:
    """Types of MMEngine's training checkpoints by the names in their pickles."""
    core = np.core if digit_version(np.__version__) < digit_version('2.0') else np._core
    numpy_functions = {
        f'{module}.multiarray.{name}': function
        for module in ('numpy.core', 'numpy._core')  # the name before and since NumPy 2
        for name, function in (('_reconstruct', _empty_array), ('scalar', core.multiarray.scalar))
    }
    kinds = f'?{np.typecodes["AllInteger"]}{np.typecodes["Float"]}'
    types = (HistoryBuffer, np.ndarray, *{type(np.dtype(kind)) for kind in kinds})
    return {
        **{f'{type_.__module__}.{type_.__qualname__}': type_ for type_ in types},
        'builtins.getattr': _history_method,
        '__builtin__.getattr': _history_method,
        'numpy.dtype': _number_type,
        **numpy_functions,
    }


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


def no_regular_file(path: Path) -> str:
    """The error message for a pipe, which would be waited for, or a device, which has no end."""
    return f'{path} is not a regular file: save the checkpoint to one and give its path.'


def _truncated(path: Path) -> str:
    kind = 'safetensors' if path.suffix == '.safetensors' else 'PyTorch'
    return (
        f'{path} ({path.stat().st_size} bytes) is truncated or not a {kind} checkpoint: '
        'download or copy it again.'
    )


def _refused(path: Path, error: Exception) -> str:
    # PyTorch's wording: "GLOBAL name was not an allowed global", before 2.4 "Unsupported class".
    found = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))
    if not found:
        return _truncated(path)
    return (
        f'{path} holds a Python object ({found[1]}) besides tensors, which is refused '
        'because unpickling it could run code: save its state dict alone, '
        "torch.save(checkpoint['state_dict'], PATH), in the program that wrote it."
    )
