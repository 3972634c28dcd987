"""Fit a state dict to other windows, levels, input channels or patch sizes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmfocalnet.checkpoints.layouts import (
    CLASSIFIER,
    OUTPUT_NORM,
    STEM,
    Network,
    State,
    select_network,
)
from mmfocalnet.checkpoints.levels import append_levels, count_levels, insert_levels
from mmfocalnet.checkpoints.read import check_finite, open_checkpoint
from mmfocalnet.checkpoints.resize import (
    adapt_input_channels,
    kernel_energy,
    resize_kernel,
    resize_patch_embedding,
)
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import join_keys

_MODULATION = r'layers\.(\d{1,9})\.blocks\.(\d{1,9})\.modulation\.'
_KERNEL = re.compile(_MODULATION + r'focal_layers\.(\d{1,9})\.0\.weight', re.ASCII)
_CONTEXT = re.compile(_MODULATION + r'f\.weight', re.ASCII)
# The deepest released network has 40 blocks. A small file can declare thousands, which take
# minutes to build.
_MAX_BLOCKS = 1000
_ADAPTABLE = ('in_chans', 'patch_size', 'focal_levels', 'focal_windows')
_DIMENSIONS = {
    r'patch_embed\.proj\.weight': 4,
    r'layers\.\d+\.blocks\.\d+\.modulation\.f\.weight': 2,
    r'layers\.\d+\.blocks\.\d+\.modulation\.f\.bias': 1,
    r'layers\.\d+\.blocks\.\d+\.modulation\.focal_layers\.\d+\.0\.weight': 4,
    r'layers\.\d+\.blocks\.\d+\.mlp\.fc1\.weight': 2,
}


@dataclass
class FitReport:
    """Changes made while fitting a checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint; error messages start with it.
        padded: Number of zero-padded kernels per change of size, such as ``'3x3 to 9x9'``.
        cropped: Number of centre-cropped kernels, likewise.
        energy_cut: Share of the cropped kernels' squared norm that was cut, per change.
        embedding: Changes of the patch embedding, such as ``'input channels 3 to 1'``.
        levels: Number of blocks with added levels per change, such as ``'2 to 3'``.
        function_kept: Whether the levels were added so that the outputs stay the same.
        dropped: Keys of the checkpoint that the model does not use (classifier, other outputs).
        initial: Keys of the model that keep their initial values.
    """

    checkpoint: str = 'The checkpoint'
    padded: Counter[str] = field(default_factory=Counter)
    cropped: Counter[str] = field(default_factory=Counter)
    energy_cut: dict[str, float] = field(default_factory=dict)
    embedding: list[str] = field(default_factory=list)
    levels: Counter[str] = field(default_factory=Counter)
    function_kept: bool = False
    dropped: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = (
            'before the last, outputs unchanged'
            if self.function_kept
            else 'after the last, global context changed'
        )
        parts = [
            _count_changes(self.padded, 'kernels zero-padded'),
            _count_changes(self.cropped, 'kernels cropped to their centre', self.energy_cut),
            join_keys(self.embedding, 'patch embedding changed'),
            _count_changes(self.levels, f'blocks with focal levels added {where}'),
            join_keys(self.dropped, 'dropped'),
            join_keys(self.initial, 'kept at their initial values'),
        ]
        return '; '.join(part for part in parts if part) or 'all tensors unchanged'


def fit_checkpoint(
    checkpoint: str | os.PathLike,
    target: Mapping[str, Tensor],
    prefix: str | None = None,
    normalize_modulator: bool = False,
) -> tuple[State, FitReport, Network]:
    """Read a checkpoint and fit it to a model's state dict.

    Args:
        checkpoint: As for `mmfocalnet.checkpoints.fetch`.
        target: State dict of the model; it may be on the meta device.
        prefix: Prefix of the backbone's keys. Defaults to None: detected.
        normalize_modulator: That setting of the model, used where levels are added. Defaults to
            False.

    Returns:
        The state dict to load, the changes, and the network in the checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be read, has NaN or infinite weights or does
            not fit.
    """
    network = select_network(open_checkpoint(checkpoint), prefix)
    check_finite(network.state, network.checkpoint)
    fitted, report = fit_state(
        network.state, target, normalize_modulator=normalize_modulator, name=network.checkpoint
    )
    return fitted, report, network


def fit_state(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    keep_function: bool = False,
    normalize_modulator: bool = False,
    name: str = 'The checkpoint',
) -> tuple[State, FitReport]:
    """Fit a checkpoint to a model: drop the classifier, resize kernels, add focal levels.

    Args:
        source: State dict of the checkpoint, without prefix.
        target: State dict of the model, with its initial values.
        keep_function: Add focal levels by `insert_levels`, which keeps the outputs but is
            unsuitable for training, instead of `append_levels`. Defaults to False.
        normalize_modulator: That setting of the model, which is not visible in its tensors.
            Defaults to False.
        name: Name of the checkpoint, for error messages. Defaults to ``'The checkpoint'``.

    Returns:
        A state dict with exactly the keys and shapes of ``target``, and the changes.

    Raises:
        CheckpointError: If the checkpoint is of another architecture, has more levels or
            more input channels than the model (unless the model has one), or has unknown keys.
    """
    report = FitReport(name)
    # A backbone starts with new output norms; only a classifier loads the final norm.
    report.dropped = [
        key
        for key in source
        if key in CLASSIFIER or (OUTPUT_NORM.fullmatch(key) and key not in target)
    ]
    state = {key: value for key, value in source.items() if key not in report.dropped}
    _check_architecture(state, target, name)
    state = _fit_embedding(state, target, report)
    state = _fit_levels(state, target, report, keep_function, normalize_modulator)
    state = _fit_kernels(state, target, report)
    return _complete(state, target, report), report


def _fit_embedding(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport
) -> State:
    """Adapt the stem's kernel (C, C_in, k, k) to the model's input channels and patch size."""
    weight, (channels, size) = state[STEM], target[STEM].shape[1:3]
    if weight.shape[1] != channels:
        report.embedding.append(f'input channels {weight.shape[1]} to {channels}')
        weight = adapt_input_channels(weight, channels, report.checkpoint)
    old, width = weight.shape[2:]
    if old == width != size:
        report.embedding.append(f'patch size {old} to {size}')
        weight = resize_patch_embedding(weight, size, report.checkpoint)
    return {**state, STEM: weight}


def _fit_kernels(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport
) -> State:
    """Resize the depth-wise kernels (C, 1, k, k) (Section 4.2: larger kernels for dense tasks)."""
    fitted = dict(state)
    before, after = Counter(), Counter()  # energy of the cropped kernels per change
    for key, weight in state.items():
        if not _KERNEL.fullmatch(key) or key not in target:
            continue
        old, new = weight.shape[-1], target[key].shape[-1]
        if old == new:
            continue
        fitted[key] = resize_kernel(weight, new)
        change = f'{old}x{old} to {new}x{new}'
        (report.padded if new > old else report.cropped)[change] += 1
        if new < old:
            before[change] += kernel_energy(weight)
            after[change] += kernel_energy(fitted[key])
    for change, energy in before.items():
        report.energy_cut[change] = max(0.0, 1 - after[change] / energy) if energy else 0.0
    return fitted


def _fit_levels(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    report: FitReport,
    keep_function: bool,
    normalize_modulator: bool,
) -> State:
    """Add focal levels with zero gates: append them, or insert them to keep the function."""
    fitted = dict(state)
    for key in [key for key in state if _CONTEXT.fullmatch(key) and key in target]:
        block = key[: -len('f.weight')]
        theirs, ours = _below(block, state), _below(block, target)
        old, new = count_levels(theirs), count_levels(ours)
        if old == new:
            continue
        _check_levels(theirs, ours, f'{report.checkpoint}, {block.removesuffix(".modulation.")}')
        start = max(old - 1, 0) if keep_function else old
        sizes = [
            ours[f'focal_layers.{level}.0.weight'].shape[-1]
            for level in range(start, start + new - old)
        ]
        if keep_function:
            changed = insert_levels(theirs, sizes, normalize_modulator, report.checkpoint)
        else:
            changed = append_levels(theirs, sizes, normalize_modulator)
        fitted.update({block + name: tensor for name, tensor in changed.items()})
        report.levels[f'{old} to {new}'] += 1
    report.function_kept = keep_function and bool(report.levels)
    return fitted


def describe(state: Mapping[str, Tensor], name: str = 'The checkpoint') -> dict[str, Any]:
    """Read the architecture of a FocalNet from the keys and shapes of its state dict.

    Args:
        state: State dict, without prefix.
        name: Name of the checkpoint, for error messages. Defaults to ``'The checkpoint'``.

    Returns:
        Constructor arguments of `FocalNet` that keys and shapes determine.

    Raises:
        CheckpointError: If a tensor has dimensions that no FocalNet has, or the numbers of stages
            or blocks have gaps.
    """
    _check_dimensions(state, name)
    stem = state[STEM]
    kernels = {
        match.group(1, 3): state[match.string].shape[-1]
        for match in map(_KERNEL.fullmatch, state)
        if match
    }
    contexts = [match for match in map(_CONTEXT.fullmatch, state) if match]
    depths = Counter(int(match[1]) for match in contexts)
    _check_blocks({(int(match[1]), int(match[2])) for match in contexts}, name)
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


def _check_dimensions(state: Mapping[str, Tensor], name: str) -> None:
    for key, value in state.items():
        expected = next((n for rule, n in _DIMENSIONS.items() if re.fullmatch(rule, key)), None)
        if expected is not None and (value.ndim != expected or not value.numel()):
            raise CheckpointError(
                f'{name} has {key} of shape {tuple(value.shape)}, expected {expected} '
                'non-empty dimensions. It is not a FocalNet, or damaged.'
            )


def _check_blocks(blocks: set[tuple[int, int]], name: str) -> None:
    """Check the number of blocks, and that stage and block numbers have no gaps."""
    if len(blocks) > _MAX_BLOCKS:
        raise CheckpointError(
            f'{name} has {len(blocks)} blocks, expected at most {_MAX_BLOCKS}. It is damaged or '
            'malicious.'
        )
    stages = {stage for stage, _ in blocks}
    missing = [f'stage {i}' for i in range(len(stages)) if i not in stages]
    for i in sorted(stages):
        own = {block for stage, block in blocks if stage == i}
        missing += [f'block {j} of stage {i}' for j in range(len(own)) if j not in own]
    if missing:
        raise CheckpointError(
            f'{name} is damaged or incomplete: {missing[0]} is missing, but later ones are '
            'present. Use a complete checkpoint.'
        )


def _check_architecture(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], name: str
) -> None:
    theirs, ours = describe(state, name), describe(target)
    differences = [
        f'{key} is {theirs[key]} in the checkpoint and {ours[key]} in the model'
        for key in theirs
        if key not in _ADAPTABLE and theirs[key] != ours[key]
    ]
    if differences:
        raise CheckpointError(
            f'{name} has another architecture: {", ".join(differences)}. Change the backbone '
            'settings or use another checkpoint.'
        )


def _complete(state: State, target: Mapping[str, Tensor], report: FitReport) -> State:
    """Add the output norms of the model, and check keys and shapes."""
    report.initial = [key for key in target if key not in state and OUTPUT_NORM.fullmatch(key)]
    state = {**state, **{key: target[key] for key in report.initial}}
    shapes = [
        f'{key} {tuple(state[key].shape)} for {tuple(target[key].shape)}'
        for key in sorted(state.keys() & target.keys())
        if state[key].shape != target[key].shape
    ]
    problems = [
        join_keys(sorted(state.keys() - target.keys()), 'unexpected keys'),
        join_keys(sorted(target.keys() - state.keys()), 'missing keys'),
        join_keys(shapes, 'different shapes'),
    ]
    if any(problems):
        raise mismatch(report.checkpoint, *problems)
    return state


def mismatch(name: str, *problems: str) -> CheckpointError:
    """The error for a checkpoint whose keys or shapes do not match those of the model."""
    return CheckpointError(
        f'{name} does not match the model: {"; ".join(filter(None, problems))}. Use the '
        'unmodified checkpoint of this architecture.'
    )


def _below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _check_levels(theirs: State, ours: State, place: str) -> None:
    """Check that a modulation of the checkpoint can get the levels of the model's."""
    old, new = count_levels(theirs), count_levels(ours)
    if new < 0 or f'focal_layers.{new}.0.weight' in ours:
        raise CheckpointError(
            f'{place} has a gate for each context, which the model lacks: leave '
            'use_global_context, aggregate and use_gates at their defaults.'
        )
    if old > new:
        raise CheckpointError(
            f'{place} has {old} focal levels and the model {new}, and levels cannot be removed. '
            f'Set focal_levels={old} for that stage (--levels {old} or more), or use a checkpoint '
            f'with {new} levels.'
        )
    kernels = {f'focal_layers.{level}.0.weight' for level in range(old)}
    if {key for key in theirs if key.startswith('focal_layers.')} != kernels:
        raise CheckpointError(
            f'{place} has gates for {old} focal levels, but kernels of other levels: the '
            'checkpoint is damaged.'
        )


def _count_changes(counter: Counter[str], what: str, cut: Mapping[str, float] | None = None) -> str:
    changes = ', '.join(
        f'{change}: {count}' + (f' with {cut[change]:.1%} of their energy cut' if cut else '')
        for change, count in sorted(counter.items())
    )
    return f'{sum(counter.values())} {what} ({changes})' if counter else ''
