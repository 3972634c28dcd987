"""Choice of the fastest path of a focal modulation by measurement, like ``cudnn.benchmark``.

Which path is fastest differs between GPUs. At the first use of a kind of call, all paths that can
run it are timed on it. The times are kept in memory and in a file per GPU and versions.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmfocalnet.files import replacing
from mmfocalnet.ops.reference import ModulationWeights
from mmfocalnet.version import __version__

DEVICES = ('cuda',)
# Runs of each path that are timed, after three others, of which the first compiles.
RUNS = 5


class Kind(NamedTuple):
    """Properties of calls that share their measured times."""

    device: torch.device
    channels: int
    kernel_sizes: tuple[int, ...]
    pixels: int  # of the batch, rounded up to a power of two
    dtype: torch.dtype
    autocast: torch.dtype | None
    training: bool

    @classmethod
    def of(cls, x: Tensor, weights: ModulationWeights) -> Kind:
        """Describe a call with features (B, H, W, C)."""
        tensors = (x, weights.f_weight, *weights.kernels)
        return cls(
            x.device,
            x.shape[-1],
            tuple(kernel.shape[-1] for kernel in weights.kernels),
            round_up(x.shape[:-1].numel()),
            x.dtype,
            _autocast_dtype(x.device.type),
            torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
        )

    def __str__(self) -> str:
        text = kind_text(self.channels, self.kernel_sizes, self.pixels, self.dtype)
        autocast = f', autocast {self.autocast}'.replace('torch.', '') if self.autocast else ''
        return f'{text}{autocast}, {"training" if self.training else "forward"}'


def kind_text(channels: int, kernel_sizes: Sequence[int], pixels: int, dtype: torch.dtype) -> str:
    """Describe features and kernels in the words that the file of times uses."""
    sizes = ' '.join(map(str, kernel_sizes))
    dtype_name = str(dtype).removeprefix('torch.')
    return f'{channels} channels, kernels {sizes}, {round_up(pixels)} pixels, {dtype_name}'


# Milliseconds by the name of a path; None if the path failed, for example for lack of memory.
Times = dict[str, float | None]
_chosen: dict[Kind, Any] = {}


def round_up(number: int) -> int:
    """Round up to a power of two."""
    return 1 << (number - 1).bit_length()


def _autocast_dtype(device: str) -> torch.dtype | None:
    if not hasattr(torch, 'get_autocast_dtype'):  # PyTorch before 2.4
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


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
        candidates: Returns the paths that can run the call, with ``name`` and ``run``.

    Returns:
        The path. None if nothing can be measured: while a CUDA graph is captured, or if all
        paths fail.
    """
    kind = Kind.of(x, weights)
    if kind in _chosen:
        return _chosen[kind]
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return None
    paths = {path.name: path for path in candidates()}
    table = _table(_name(kind.device))
    times = table.get(str(kind), {})
    if set(times) != set(paths):
        print_log(f'Measure the paths of focal modulation: {kind}', logger='current')
        times = {name: _milliseconds(path.run, x, weights) for name, path in paths.items()}
        table[str(kind)] = times
        _save(_name(kind.device), table)
    valid = {name: time for name, time in times.items() if time is not None}
    if not valid:
        return None
    _chosen[kind] = paths[min(valid, key=valid.__getitem__)]
    return _chosen[kind]


def describe(kind: str, device: str) -> list[str]:
    """Return one line for each measured kind whose text starts with that of `kind_text`."""
    if device not in DEVICES or (device == 'cuda' and not torch.cuda.is_available()):
        return []
    measured = _table(_name(torch.device(device)))
    return [_line(found, measured[found]) for found in measured if found.startswith(kind)]


def _line(kind: str, times: Times) -> str:
    ordered = sorted(times.items(), key=lambda item: (item[1] is None, item[1]))
    cells = [f'{name} {"failed" if ms is None else f"{ms:.3g} ms"}' for name, ms in ordered]
    return f'measured, {kind}: {", ".join(cells)}'


def _milliseconds(
    run: Callable[..., Tensor], x: Tensor, weights: ModulationWeights
) -> float | None:
    """Time a path, with its gradients if the call needs them; None if it fails."""
    from torch.utils.benchmark import Timer  # a slow import

    f_weight, f_bias, kernels, h_weight, h_bias, normalize = weights
    leaves = ModulationWeights(
        _leaf(f_weight),
        _leaf(f_bias),
        tuple(map(_leaf, kernels)),
        _leaf(h_weight),
        _leaf(h_bias),
        normalize,
    )
    step = functools.partial(_step, run, _leaf(x), leaves)
    try:
        # Activation checkpointing counts the tensors that are saved outside of these hooks.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            step()
            timer = Timer('step()', globals={'step': step}, num_threads=torch.get_num_threads())
            return 1e3 * timer.timeit(RUNS).mean
    except Exception as error:  # out of memory, or an error of a compiler or library
        message = f'A path of focal modulation failed when it was measured: {error}'
        print_log(message, logger='current', level=logging.DEBUG)
        return None


def _step(run: Callable[..., Tensor], x: Tensor, weights: ModulationWeights) -> None:
    out = run(x, weights)
    if out.requires_grad:
        linear = (weights.f_weight, weights.f_bias, weights.h_weight, weights.h_bias)
        given = [tensor for tensor in (x, *linear, *weights.kernels) if tensor is not None]
        inputs = [tensor for tensor in given if tensor.requires_grad]
        torch.autograd.grad(out, inputs, out.detach())


def _leaf(tensor: Any) -> Any:
    """Return a tensor with the same memory outside of the graph; None for None."""
    return None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad)


@functools.cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type


@functools.cache
def _table(device_name: str) -> dict[str, Times]:
    return _read(_file(device_name))


def _file(device_name: str) -> Path:
    """Return the file for a GPU and the versions that the times depend on."""
    versions = {'torch': torch.__version__, 'mmfocalnet': __version__}
    try:
        versions['triton'] = version('triton')
    except PackageNotFoundError:
        versions['triton'] = 'none'
    text = ' '.join([device_name, *(f'{name} {number}' for name, number in versions.items())])
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(cache, 'mmfocalnet', re.sub(r'[^\w.+-]+', '_', text) + '.json')


def _read(file: Path) -> dict[str, Times]:
    try:
        table = json.loads(file.read_text())
        return {
            kind: {name: None if time is None else float(time) for name, time in times.items()}
            for kind, times in table.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):  # missing or damaged
        return {}


def _save(device_name: str, table: dict[str, Times]) -> None:
    file = _file(device_name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            # Other processes may have added times since.
            part.write_text(json.dumps(_read(file) | table, indent=1))
    except OSError as error:
        message = f'The times of paths are not kept ({error}).'
        print_log(message, logger='current', level=logging.DEBUG)
