"""Fitting a checkpoint to other windows or more levels: dict to dict, no side effects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfocalnet.errors import CheckpointError

State = dict[str, Tensor]

_STEM = 'patch_embed.proj.weight'
_KERNEL = re.compile(r'layers\.(\d+)\.blocks\.\d+\.modulation\.focal_layers\.(\d+)\.0\.weight')
_CONTEXT = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.modulation\.f\.weight')
_OUTPUT_NORM = re.compile(r'norm\d+\.(weight|bias)')
_CLASSIFIER = ('norm.weight', 'norm.bias', 'head.weight', 'head.bias')


@dataclass
class FitReport:
    """What fitting changed.

    Attributes:
        padded: Count of zero-padded kernels per change of size, such as ``'3x3 to 9x9'``.
        cropped: Count of centre-cropped kernels, likewise.
        levels: Count of blocks with added levels per change, such as ``'2 to 3'``.
        dropped: Keys of the checkpoint left out on purpose (classifier, other outputs).
        fresh: Keys of the model that keep their initial values.
    """

    padded: Counter[str] = field(default_factory=Counter)
    cropped: Counter[str] = field(default_factory=Counter)
    levels: Counter[str] = field(default_factory=Counter)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            _counted(self.padded, 'kernels zero-padded'),
            _counted(self.cropped, 'kernels cropped to their centre'),
            _counted(self.levels, 'blocks given more focal levels'),
            _listed(self.dropped, 'dropped on purpose'),
            _listed(self.fresh, 'kept at their initial values'),
        ]
        return '; '.join(part for part in parts if part) or 'every tensor as it is'


def fit_state(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[State, FitReport]:
    """Fit a checkpoint to a model: drop the classifier, resize kernels, add focal levels.

    Args:
        source: State dict of the checkpoint, without prefix.
        target: State dict of the model, in its initial values.

    Returns:
        A state dict with exactly the keys and shapes of ``target``, and what was changed.

    Raises:
        CheckpointError: If the checkpoint is of another architecture, has more levels than
            the model, or has keys that match nothing.
    """
    report = FitReport()
    state = _drop(source, target, report)
    _check_dimensions(state, target)
    _check_architecture(state, target)
    state = fit_levels(state, target, report)
    state = fit_kernels(state, target, report)
    return _complete(state, target, report), report


def select_prefix(state: Mapping[str, Tensor], prefix: str | None = None) -> tuple[State, str]:
    """Cut one FocalNet out of a state dict that may hold more (a detector, a teacher).

    Args:
        state: State dict with prefixed keys.
        prefix: What stands before ``patch_embed``, such as ``'backbone.'``. Defaults to
            None: found by itself, where just one FocalNet is in the file.

    Returns:
        The keys below the prefix, without it, and the prefix.

    Raises:
        CheckpointError: If there is no FocalNet, or not under that prefix, or several.
    """
    found = sorted(key[: -len(_STEM)] for key in state if ('.' + key).endswith('.' + _STEM))
    if not found:
        raise CheckpointError(
            f'holds no FocalNet: no key ends in {_STEM!r}, its keys are like '
            f'{", ".join(map(repr, list(state)[:3]))}.'
        )
    names = ', '.join(repr(item) for item in found)
    if prefix is None:
        if len(found) > 1:
            raise CheckpointError(f'holds several FocalNets: choose by prefix=, one of {names}.')
        prefix = found[0]
    else:
        prefix = prefix if not prefix or prefix.endswith('.') else prefix + '.'
        prefix = next((p for p in (prefix, 'module.' + prefix) if p in found), prefix)
    if prefix not in found:
        raise CheckpointError(f'has no FocalNet under prefix {prefix!r}: it is under {names}.')
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}, (
        prefix
    )


def fit_kernels(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport
) -> State:
    """Resize every depth-wise kernel to the model's (Section 4.2: larger kernels for dense tasks).

    Args:
        state: State dict; kernels are (C, 1, k, k).
        target: State dict of the model.
        report: Counts of padded and cropped kernels are added here.

    Returns:
        A new state dict; other tensors are the same objects.
    """
    fitted = dict(state)
    for key, weight in state.items():
        if not _KERNEL.fullmatch(key) or key not in target:
            continue
        old, new = weight.shape[-1], target[key].shape[-1]
        if old != new:
            fitted[key] = resize_kernel(weight, new)
            (report.padded if new > old else report.cropped)[f'{old}x{old} to {new}x{new}'] += 1
    return fitted


def resize_kernel(weight: Tensor, size: int) -> Tensor:
    """Centre a kernel in zeros, or cut out its centre.

    Zero-padding leaves the convolution's result unchanged; cropping does not.

    Args:
        weight: Kernel (C, 1, k, k), k odd.
        size: New k, odd.

    Returns:
        Kernel (C, 1, size, size).
    """
    margin = (size - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4)


def fit_levels(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport
) -> State:
    """Give blocks more focal levels, with gates of zero.

    The rows of ``modulation.f`` are query (C), context (C), gates of the L levels, gate of
    the global context: known gates are copied, the global one stays last, new ones are
    zero. Kernels of new levels keep the model's initial values. The network's function
    does change: the global context is averaged after the last level.

    Args:
        state: State dict.
        target: State dict of the model.
        report: Counts of changed blocks are added here.

    Returns:
        A new state dict; other tensors are the same objects.

    Raises:
        CheckpointError: If the checkpoint has more levels than the model.
    """
    fitted = dict(state)
    for key in [key for key in state if _CONTEXT.fullmatch(key) and key in target]:
        dim = state[key].shape[1]
        old, new = (tensor.shape[0] - 2 * dim - 1 for tensor in (state[key], target[key]))
        if old == new:
            continue
        if old > new:
            raise CheckpointError(
                f'has {old} focal levels at {key.rsplit(".", 2)[0]} but the model has {new}, and '
                f'levels cannot be removed: set focal_levels={old} for that stage, or take the '
                f'checkpoint with {new} levels.'
            )
        block = key[: -len('f.weight')]
        for name in ('f.weight', 'f.bias'):
            if block + name in state:
                fitted[block + name] = _add_gates(state[block + name], new - old)
        for level in range(old, new):
            kernel = f'{block}focal_layers.{level}.0.weight'
            fitted[kernel] = target[kernel]
            report.fresh.append(kernel)
        report.levels[f'{old} to {new}'] += 1
    return fitted


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off a state dict's keys and shapes which FocalNet it is.

    Args:
        state: State dict, without prefix.

    Returns:
        Constructor arguments of `FocalNet` that keys and shapes determine.
    """
    stem = state[_STEM]
    kernels = {m.groups(): state[m.string].shape[-1] for m in map(_KERNEL.fullmatch, state) if m}
    depths = Counter(int(match[1]) for match in map(_CONTEXT.fullmatch, state) if match)
    stages = sorted(depths)
    conv_embed = stem.shape[-1] == 7
    return dict(
        in_chans=stem.shape[1],
        patch_size=4 if conv_embed else stem.shape[-1],
        embed_dim=stem.shape[0],
        depths=[depths[i] for i in stages],
        focal_levels=[sum(int(stage) == i for stage, _ in kernels) for i in stages],
        focal_windows=[kernels.get((str(i), '0'), 1) for i in stages],
        use_conv_embed=conv_embed,
        use_layerscale=any(key.endswith('.gamma_1') for key in state),
        use_postln_in_modulation=any('.modulation.ln.' in key for key in state),
    )


def _drop(source: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport) -> State:
    # A classifier's final norm saw other features than any output norm of the backbone.
    report.dropped = [
        key
        for key in source
        if key in _CLASSIFIER or (_OUTPUT_NORM.fullmatch(key) and key not in target)
    ]
    return {key: value for key, value in source.items() if key not in report.dropped}


def _check_dimensions(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for key in state.keys() & target.keys():
        if state[key].ndim != target[key].ndim:
            raise CheckpointError(
                f'has {key} of shape {tuple(state[key].shape)} where {target[key].ndim} '
                'dimensions were expected: it is no FocalNet, or damaged.'
            )


def _check_architecture(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    theirs, ours = describe(state), describe(target)
    differences = [
        f'{name} is {theirs[name]} in the checkpoint and {ours[name]} in the model'
        for name in theirs
        if name not in ('focal_levels', 'focal_windows') and theirs[name] != ours[name]
    ]
    if differences:
        raise CheckpointError(
            f'is of another architecture: {", ".join(differences)}; change the backbone '
            'settings or take another checkpoint.'
        )


def _complete(state: State, target: Mapping[str, Tensor], report: FitReport) -> State:
    fresh = [key for key in target if key not in state and _OUTPUT_NORM.fullmatch(key)]
    report.fresh = fresh + report.fresh
    state = {**state, **{key: target[key] for key in fresh}}
    problems = [
        _listed(sorted(state.keys() - target.keys()), 'unexpected keys'),
        _listed(sorted(target.keys() - state.keys()), 'missing keys'),
        _listed(
            [
                f'{key} {tuple(state[key].shape)} for {tuple(target[key].shape)}'
                for key in sorted(state.keys() & target.keys())
                if state[key].shape != target[key].shape
            ],
            'shapes that differ',
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f'does not fit the model: {"; ".join(filter(None, problems))}; '
            'use the checkpoint of this architecture, unchanged.'
        )
    return state


def _add_gates(tensor: Tensor, count: int) -> Tensor:
    zeros = tensor.new_zeros(count, *tensor.shape[1:])
    return torch.cat([tensor[:-1], zeros, tensor[-1:]])


def _counted(counter: Counter[str], what: str) -> str:
    changes = ', '.join(f'{change}: {count}' for change, count in sorted(counter.items()))
    return f'{sum(counter.values())} {what} ({changes})' if counter else ''


def _listed(keys: list[str], what: str) -> str:
    if not keys:
        return ''
    more = f' and {len(keys) - 10} more' if len(keys) > 10 else ''
    return f'{what}: {", ".join(keys[:10])}{more}'
