"""Load checkpoint files of any format without running code that they may contain."""

from __future__ import annotations

import codecs
import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from argparse import Namespace
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
from mmfocalnet.text import short_text

# The format before PyTorch 1.6: magic number, version, system, content, names of the storages.
_LEGACY_PICKLES = 5
# Tensors that share storages may be this many times as large as the file.
_MAX_EXPANSION = 8


class Loaded(NamedTuple):
    """Content of a checkpoint file.

    Attributes:
        path: The file.
        content: The saved object, usually a dict; for a safetensors file the state dict.
        metadata: ``meta`` of that dict, or the metadata of a safetensors file; of any type.
    """

    path: Path
    content: Any
    metadata: Any


def load_file(path: Path, map_location: Any = 'cpu', name: str | None = None) -> Loaded:
    """Load a checkpoint file, memory-mapped where the format allows, without running its code.

    Tensors, plain containers and the harmless types of MMEngine's training checkpoints are
    allowed.

    Args:
        path: The file.
        map_location: As for `torch.load`. Defaults to ``'cpu'``.
        name: Name of the checkpoint in error messages. Defaults to None: the path.

    Returns:
        Its content and its metadata.

    Raises:
        CheckpointError: If it is truncated, damaged, not a checkpoint, or contains other objects.
    """
    # Resolve a link once, so that all checks and the load use the same file.
    file = _File(Path(os.path.realpath(path)), name or str(path))
    kind = file.format()
    if kind == 'safetensors':
        return Loaded(path, *_load_safetensors(file, map_location))
    content = _load_pytorch(file, kind == 'zip', map_location)
    return Loaded(path, content, content.get('meta') if isinstance(content, dict) else None)


def check_regular(path: Path, name: str) -> None:
    """Refuse a path that is a pipe, from which reading would block, or a device."""
    if path.exists() and not path.is_file():
        raise CheckpointError(
            f'{name} is not a regular file. Save the checkpoint to a file and give its path.'
        )


class _File(NamedTuple):
    """A checkpoint file and its name in error messages."""

    path: Path
    name: str

    def format(self) -> str:
        """``'safetensors'``, PyTorch's ``'zip'``, or ``'pickle'`` of PyTorch before 1.6."""
        check_regular(self.path, self.name)
        try:
            with self.path.open('rb') as file:
                start = file.read(512)
        except OSError as error:
            raise CheckpointError(f'{self.name} cannot be read ({error.strerror}).') from error
        # The first eight bytes are the length of a JSON header; each may have any value.
        if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') + 8 <= self.size():
            return 'safetensors'
        if start.removeprefix(b'\xef\xbb\xbf').lstrip()[:1] == b'<':
            raise CheckpointError(
                f'{self.name} is a web page (HTML), not a checkpoint: the download was redirected. '
                'Delete it and download the file itself.'
            )
        with suppress(zipfile.BadZipFile):  # raised for archives of several disks
            if start.startswith(b'PK') and zipfile.is_zipfile(self.path):
                return 'zip'
        if start.startswith(b'\x80'):
            return 'pickle'
        raise self.truncated()

    def size(self) -> int:
        """Size in bytes."""
        return self.path.stat().st_size

    def truncated(self) -> CheckpointError:
        """The error for a file that is not complete or not a checkpoint."""
        kind = 'safetensors' if self.path.suffix == '.safetensors' else 'PyTorch'
        return CheckpointError(
            f'{self.name} ({self.size()} bytes) is truncated or not a {kind} checkpoint. '
            'Download or copy it again.'
        )

    def refused(self, error: Exception) -> CheckpointError:
        """The error for an object that the restricted unpickler does not load."""
        # "GLOBAL name was not an allowed global", before PyTorch 2.4 "Unsupported class".
        found = re.search(r'(?:GLOBAL|Unsupported class) ([\w.]+)', str(error))
        if not found:
            return self.truncated()
        return CheckpointError(
            f'{self.name} contains a Python object ({found[1]}) besides tensors, and unpickling it '
            "could run code. Save the state dict alone, torch.save(checkpoint['state_dict'], "
            'PATH), in the program that wrote it.'
        )


def _load_safetensors(file: _File, map_location: Any) -> tuple[Any, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{file.name} needs the safetensors package: pip install 'mmfocalnet[hf]'."
        ) from error
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    try:
        with safe_open(str(file.path), framework='pt', device=str(device)) as tensors:
            metadata: dict[str, Any] = dict(tensors.metadata() or {})
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        if 'mmfocalnet' in metadata:  # safetensors stores strings only
            metadata['mmfocalnet'] = json.loads(metadata['mmfocalnet'])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise file.truncated() from error
    return state, metadata


def _load_pytorch(file: _File, is_zip: bool, map_location: Any) -> Any:
    try:
        _check_pickles(file.path, is_zip)
        # Only the zip format can be mapped; the one before PyTorch 1.6 is read completely.
        content = _torch_load(str(file.path), map_location=map_location, mmap=is_zip)
        changed = _changed_entry(file.path) if is_zip else None
    except HostilePickleError as error:
        raise CheckpointError(
            f'{file.name} is not a PyTorch checkpoint, or is malicious ({error}). Download it from '
            'another source.'
        ) from error
    except pickle.UnpicklingError as error:
        raise file.refused(error) from error
    except Exception as error:  # damaged bytes raise almost any type
        raise file.truncated() from error
    if changed:
        raise CheckpointError(
            f'{file.name} is damaged (checksum of {short_text(changed)}). Download or copy it '
            'again.'
        )
    dense = (tensor for tensor in _tensors(content) if tensor.layout == torch.strided)
    if sum(t.nbytes for t in dense if not t.is_meta) > _MAX_EXPANSION * file.size():
        raise CheckpointError(
            f'{file.name} ({file.size()} bytes) is damaged: its tensors are declared far larger '
            'than the file. Download or copy it again.'
        )
    return content


def _changed_entry(path: Path) -> str | None:
    """The first entry with a wrong checksum in PyTorch's zip format; ``torch.load`` ignores it."""
    with zipfile.ZipFile(path) as archive:
        # 0: not computed, see torch.serialization.set_crc32_options.
        archive.filelist = [entry for entry in archive.filelist if entry.CRC]
        return archive.testzip()


def _torch_load(path: str, **settings: Any) -> Any:
    allowed = _training_types()
    if digit_version(torch.__version__) >= digit_version('2.6'):
        pairs = [(value, name) for name, value in allowed.items()]
        with torch.serialization.safe_globals(pairs):
            return torch.load(path, weights_only=True, **settings)
    # Earlier versions cannot allow a type under another name. A pickle module that finds the
    # allowed names only enforces the same restriction.
    from torch._weights_only_unpickler import _get_allowed_globals

    restricted = _pickle_module({**_get_allowed_globals(), **allowed})
    return torch.load(path, weights_only=False, pickle_module=restricted, **settings)


def _pickle_module(allowed: dict[str, Any]) -> SimpleNamespace:
    """Replacement for `pickle` in `torch.load` that finds the allowed names only."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

    def load(file: BinaryIO, **settings: Any) -> Any:
        return Unpickler(file, **settings).load()

    return SimpleNamespace(__name__='restricted', Unpickler=Unpickler, load=load)


def _check_pickles(path: Path, is_zip: bool) -> None:
    """Scan the pickle instructions of a file before PyTorch executes them."""
    if not is_zip:
        if tarfile.is_tarfile(path):  # PyTorch before 0.2 wrote these; torch.load unpacks them
            raise HostilePickleError('the file is also a tar archive')
        with path.open('rb') as file:
            for _ in range(_LEGACY_PICKLES):
                check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type for entry in entries) or unpacked > path.stat().st_size:
        raise HostilePickleError('the archive is compressed')
    # PyTorch's own reader, because two readers may interpret a broken archive differently.
    reader = torch._C.PyTorchFileReader(str(path))
    if 'constants.pkl' in reader.get_all_records():  # old versions of PyTorch would run it
        raise HostilePickleError('the archive contains TorchScript code')
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
        '_codecs.encode': codecs.encode,  # the bytes of NumPy's arrays; PyTorch 2.3 lacks it
        'argparse.Namespace': Namespace,  # the settings of a run, beside its weights
        **numpy_functions,
    }


def _history_method(owner: Any, name: str) -> Any:
    """The only `getattr` that training checkpoints need: statistics of the loss history."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr of {owner!r}')
    return getattr(HistoryBuffer, name)


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """The empty array with which NumPy starts; its state sets shape and type afterwards."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f'GLOBAL _reconstruct of {kind!r}')
    return np.ndarray(shape, code)


def _number_type(code: Any, *flags: bool) -> np.dtype:
    """A numeric dtype; other kinds may have any size or contain objects."""
    dtype = np.dtype(code, *flags)
    if dtype.kind not in 'biuf':
        raise pickle.UnpicklingError(f'GLOBAL dtype of {dtype.kind}')
    return dtype
