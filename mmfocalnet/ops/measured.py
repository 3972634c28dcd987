"""Choice of the fastest path of a focal modulation by measurement, like ``cudnn.benchmark``.

Which path is fastest differs between GPUs. At the first call of a kind, all paths that can run it
are timed on its tensors. The times are kept in memory and in a file per GPU and versions.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mmfocalnet.files import replacing
from mmfocalnet.ops.call import autocast_dtype
from mmfocalnet.ops.reference import ModulationWeights
from mmfocalnet.version import __version__

DEVICES = ('cuda',)
# Runs of each path that are timed, after the first one, which compiles.
RUNS = 5
# The first path is replaced only by one that takes less than this share of its time: otherwise
# noise would decide between equal paths, whose results differ in the last bits.
SHARE = 0.95

# Milliseconds by the name of a path; None if the path failed, for example for lack of memory.
Times = dict[str, float | None]


class Kind(NamedTuple):
    """Properties of calls that share their measured times."""

    device: torch.device
    channels: int
    kernel_sizes: tuple[int, ...]
    pixels: int  # of the batch, rounded up to a power of two
    dtype: torch.dtype
    weight_dtype: torch.dtype
    autocast: torch.dtype | None
    grads: str  # 'forward', 'training' or 'training, kernels frozen'

    @classmethod
    def of(cls, x: Tensor, weights: ModulationWeights) -> Kind:
        """Describe a call with features (B, H, W, C)."""
        return cls(
            x.device,
            x.shape[-1],
            tuple(kernel.shape[-1] for kernel in weights.kernels),
            _round_up(x.shape[:-1].numel()),
            x.dtype,
            weights.f_weight.dtype,
            autocast_dtype(x.device.type),
            _needed_grads(x, weights),
        )

    def __str__(self) -> str:
        text = describe_call(self.channels, self.kernel_sizes, self.pixels, self.dtype)
        weights = f', weights {self.weight_dtype}' if self.weight_dtype != self.dtype else ''
        autocast = f', autocast {self.autocast}' if self.autocast else ''
        return f'{text}{weights}{autocast}, {self.grads}'.replace('torch.', '')


def describe_call(
    channels: int, kernel_sizes: Sequence[int], pixels: int, dtype: torch.dtype
) -> str:
    """Describe features and kernels in the words with which the file of times begins its lines."""
    sizes = ' '.join(map(str, kernel_sizes))
    dtype_name = str(dtype).removeprefix('torch.')
    return f'{channels} channels, kernels {sizes}, {_round_up(pixels)} pixels, {dtype_name}'


def _round_up(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _needed_grads(x: Tensor, weights: ModulationWeights) -> str:
    if not torch.is_grad_enabled():
        return 'forward'
    if any(kernel.requires_grad for kernel in weights.kernels):
        return 'training'
    others = (x, weights.f_weight, weights.h_weight)
    return 'training, kernels frozen' if any(t.requires_grad for t in others) else 'forward'


_chosen: dict[Kind, Any] = {}
_lock = threading.Lock()


def is_enabled(x: Tensor) -> bool:
    """Whether the path is measured: on GPUs, unless results must be reproducible."""
    return x.device.type in DEVICES and not (
        torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
    )


def fastest(
    x: Tensor, weights: ModulationWeights, candidates: Callable[[], Iterable[Any]]
) -> Any | None:
    """Return the fastest path for a call; measure at the first call of its kind.

    Args:
        x: Features (B, H, W, C).
        weights: Weights of the focal modulation.
        candidates: Returns the paths that can run the call, with ``name`` and ``run``. The first
            one is preferred to paths that are not clearly faster.

    Returns:
        The path. None if nothing can be measured: while a CUDA graph is captured, or if all
        paths fail.
    """
    kind = Kind.of(x, weights)
    if kind in _chosen:
        return _chosen[kind]
    with _lock, torch.cuda.device_of(x):
        if kind in _chosen:  # by another thread
            return _chosen[kind]
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return None
        paths = {path.name: path for path in candidates()}
        times = _known_times(kind, paths) or _measure(kind, paths, x, weights)
    best = _best(times)
    if best is None:
        return None
    _chosen[kind] = paths[best]
    return paths[best]


def _best(times: Times) -> str | None:
    """Return the first path, unless another one is clearly faster; None if all have failed."""
    found = {name: ms for name, ms in times.items() if ms is not None}
    if not found:
        return None
    first, best = next(iter(times)), min(found, key=found.__getitem__)
    return first if first in found and found[best] > SHARE * found[first] else best


def describe_times(call: str, device: str) -> list[str]:
    """Return a line for each measured kind whose text begins with that of `describe_call`.

    The line has the path that runs, and the times of all paths.
    """
    if device not in DEVICES or (device == 'cuda' and not torch.cuda.is_available()):
        return []
    table = _table(_name(torch.device(device)))
    return [_line(kind, times) for kind, times in table.items() if kind.startswith(call)]


def _line(kind: str, times: Times) -> str:
    ordered = sorted(times.items(), key=lambda item: (item[1] is None, item[1]))
    cells = [f'{name} {"failed" if ms is None else f"{ms:.3g} ms"}' for name, ms in ordered]
    return f'{_best(times)}: runs for {kind} ({", ".join(cells)})'


def _known_times(kind: Kind, paths: dict[str, Any]) -> Times:
    """Return the times in the file, of which other processes may have measured some."""
    name = _name(kind.device)
    _table(name).update(_read(_file(name)))
    times = _table(name).get(str(kind), {})
    return times if set(times) == set(paths) else {}


def _measure(kind: Kind, paths: dict[str, Any], x: Tensor, weights: ModulationWeights) -> Times:
    print_log(f'Measure the paths of focal modulation: {kind}', logger='current')
    times = {name: _milliseconds(path, x, weights) for name, path in paths.items()}
    table = _table(_name(kind.device))
    table[str(kind)] = times
    # If a path failed, perhaps for lack of memory, the next process measures again.
    if None not in times.values():
        _save(_file(_name(kind.device)), table)
    return times


def _milliseconds(path: Any, x: Tensor, weights: ModulationWeights) -> float | None:
    """Time a path, with its gradients if the call needs them; None if it fails."""

    def seconds() -> float:
        start = _now(x)
        out = path.run(leaf, leaves)
        if inputs and out.requires_grad:
            torch.autograd.grad(out, inputs, out.detach())
        return _now(x) - start

    leaf, leaves = tree_map(_leaf, (x, weights))
    tensors = [value for value in tree_flatten((leaf, leaves))[0] if isinstance(value, Tensor)]
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    # Activation checkpointing counts the tensors that are saved outside of these hooks.
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    try:
        with hooks, torch.autograd.set_detect_anomaly(False):
            seconds()
            return 1e3 * statistics.median(seconds() for _ in range(RUNS))
    except Exception as error:  # out of memory, or an error of a compiler or library
        _now(x)  # raises the errors that make a GPU unusable
        is_full = isinstance(error, torch.cuda.OutOfMemoryError)
        message = f'Path {path.name!r} failed when it was measured: {error}'
        print_log(message, logger='current', level=logging.DEBUG if is_full else logging.WARNING)
        return None


def _leaf(value: Any) -> Any:
    """Return a tensor with the same memory outside of the graph."""
    return value.detach().requires_grad_(value.requires_grad) if torch.is_tensor(value) else value


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


@functools.cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type


@functools.cache
def _table(device_name: str) -> dict[str, Times]:
    return _read(_file(device_name))


def _file(device_name: str) -> Path:
    """Return the file for a GPU and the versions that the times depend on."""
    try:
        triton = version('triton')
    except PackageNotFoundError:
        triton = 'none'
    versions = f'torch {torch.__version__} triton {triton} mmfocalnet {__version__}'
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    file_name = re.sub(r'[^\w.+-]+', '_', f'{device_name} {versions}')
    return Path(cache, 'mmfocalnet', f'{file_name}.json')


def _read(file: Path) -> dict[str, Times]:
    """Return the measured times in a file; none of those in a damaged one."""
    if not file.is_file():
        return {}
    try:
        table = json.loads(file.read_text())
        times: dict[str, Times] = {
            kind: {name: float(ms) for name, ms in row.items()} for kind, row in table.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}
    return {kind: row for kind, row in times.items() if all(map(_is_time, row.values()))}


def _is_time(ms: float | None) -> bool:
    return ms is not None and 0 < ms < math.inf


def _save(file: Path, table: dict[str, Times]) -> None:
    complete = {kind: times for kind, times in table.items() if None not in times.values()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(json.dumps(complete, indent=1))
    except OSError as error:
        message = f'The times of paths are not kept ({error}).'
        print_log(message, logger='current', level=logging.DEBUG)
