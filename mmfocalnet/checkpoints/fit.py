"""Fitting a checkpoint to another window, level, channel or patch setting: dict to dict."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmfocalnet.checkpoints.fit_report import FitReport
from mmfocalnet.checkpoints.layouts import CLASSIFIER, OUTPUT_NORM, STEM, State
from mmfocalnet.checkpoints.levels import append_levels, count_levels, insert_levels
from mmfocalnet.checkpoints.resize import (
    adapt_input_channels,
    kernel_energy,
    resize_kernel,
    resize_patch_embedding,
)
from mmfocalnet.errors import CheckpointError
from mmfocalnet.text import listed

_MODULATION = r'layers\.(\d{1,9})\.blocks\.(\d{1,9})\.modulation\.'
_KERNEL = re.compile(_MODULATION + r'focal_layers\.(\d{1,9})\.0\.weight', re.ASCII)
_CONTEXT = re.compile(_MODULATION + r'f\.weight', re.ASCII)
_FITTED = ('in_chans', 'patch_size', 'focal_levels', 'focal_windows')
_DIMENSIONS = {
    r'patch_embed\.proj\.weight': 4,
    r'layers\.\d+\.blocks\.\d+\.modulation\.f\.weight': 2,
    r'layers\.\d+\.blocks\.\d+\.modulation\.f\.bias': 1,
    r'layers\.\d+\.blocks\.\d+\.modulation\.focal_layers\.\d+\.0\.weight': 4,
    r'layers\.\d+\.blocks\.\d+\.mlp\.fc1\.weight': 2,
}


def fit_state(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    keep_function: bool = False,
    normalize_modulator: bool = False,
) -> tuple[State, FitReport]:
    """Fit a checkpoint to a model: drop the classifier, resize kernels, add focal levels.

    Args:
        source: State dict of the checkpoint, without prefix.
        target: State dict of the model, in its initial values.
        keep_function: Add focal levels so that the outputs stay the same, at the price of
            kernels that do not train; see `fit_levels`. Defaults to False.
        normalize_modulator: That setting of the model, which no tensor tells. Defaults to
            False.

    Returns:
        A state dict with exactly the keys and shapes of ``target``, and what was changed.

    Raises:
        CheckpointError: If the checkpoint is of another architecture, has more levels or
            more input channels than the model (other than one), or has keys that match
            nothing.
    """
    report = FitReport()
    state = _drop(source, target, report)
    check_dimensions(state)
    _check_architecture(state, target)
    state = fit_embedding(state, target, report)
    state = fit_levels(
        state,
        target,
        report,
        keep_function=keep_function,
        normalize_modulator=normalize_modulator,
    )
    state = fit_kernels(state, target, report)
    return _complete(state, target, report), report


def fit_embedding(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport
) -> State:
    """Give the stem the model's input channels and patch size.

    What is preserved: see `adapt_input_channels` and `resize_patch_embedding`.

    Args:
        state: State dict; the stem's kernel is (C, C_in, k, k).
        target: State dict of the model.
        report: The changes are added here.

    Returns:
        A new state dict; other tensors are the same objects.

    Raises:
        CheckpointError: If channels would have to be left out, or an overlapped embedding
            resized.
    """
    fitted = dict(state)
    weight, (channels, size) = state[STEM], target[STEM].shape[1:3]
    if weight.shape[1] != channels:
        report.embedding.append(f'input channels {weight.shape[1]} to {channels}')
        weight = adapt_input_channels(weight, channels)
    old, width = weight.shape[2:]
    if old == width != size:
        report.embedding.append(f'patch size {old} to {size}')
        weight = resize_patch_embedding(weight, size)
    fitted[STEM] = weight
    return fitted


def fit_kernels(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport
) -> State:
    """Resize every depth-wise kernel to the model's (Section 4.2: larger kernels for dense tasks).

    Zero-padding keeps the network's function; cropping does not, and the report says what
    share of the kernels' energy (squared norm) was cut.

    Args:
        state: State dict; kernels are (C, 1, k, k).
        target: State dict of the model.
        report: Counts of padded and cropped kernels are added here.

    Returns:
        A new state dict; other tensors are the same objects.
    """
    fitted = dict(state)
    before, after = Counter(), Counter()  # energy of the kernels per change
    for key, weight in state.items():
        if not _KERNEL.fullmatch(key) or key not in target:
            continue
        old, new = weight.shape[-1], target[key].shape[-1]
        if old == new:
            continue
        fitted[key] = resize_kernel(weight, new)
        change = f'{old}x{old} to {new}x{new}'
        if new > old:
            report.padded[change] += 1
        else:
            report.cropped[change] += 1
            before[change] += kernel_energy(weight)
            after[change] += kernel_energy(fitted[key])
    for change, energy in before.items():
        report.energy_cut[change] = max(0.0, 1 - after[change] / energy) if energy else 0.0
    return fitted


def fit_levels(
    state: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    report: FitReport,
    *,
    keep_function: bool = False,
    normalize_modulator: bool = False,
) -> State:
    """Give blocks more focal levels, with gates of zero.

    By default they come last (`append_levels`), and the global context changes a little, for
    it is averaged after the last level. Levels that keep the function to rounding come
    before the last one (`insert_levels`), but do not train.

    Args:
        state: State dict.
        target: State dict of the model.
        report: Counts of changed blocks are added here.
        keep_function: Insert the levels instead of appending them. Defaults to False.
        normalize_modulator: That setting of the model. Defaults to False.

    Returns:
        A new state dict; other tensors are the same objects.

    Raises:
        CheckpointError: If the checkpoint has more levels than the model.
    """
    fitted = dict(state)
    for key in [key for key in state if _CONTEXT.fullmatch(key) and key in target]:
        block = key[: -len('f.weight')]
        theirs, ours = _below(block, state), _below(block, target)
        old, new = count_levels(theirs), count_levels(ours)
        if old == new:
            continue
        _check_levels(block, theirs, old, new)
        start = max(old - 1, 0) if keep_function else old
        sizes = [
            ours[f'focal_layers.{level}.0.weight'].shape[-1]
            for level in range(start, start + new - old)
        ]
        add_levels = insert_levels if keep_function else append_levels
        changed = add_levels(theirs, sizes, normalize_modulator)
        fitted.update({block + name: tensor for name, tensor in changed.items()})
        report.levels[f'{old} to {new}'] += 1
    report.function_kept = keep_function and bool(report.levels)
    return fitted


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off a state dict's keys and shapes which FocalNet it is.

    Args:
        state: State dict, without prefix.

    Returns:
        Constructor arguments of `FocalNet` that keys and shapes determine.

    Raises:
        CheckpointError: If stages or blocks are missing between others.
    """
    stem = state[STEM]
    kernels = {
        match.group(1, 3): state[match.string].shape[-1]
        for match in map(_KERNEL.fullmatch, state)
        if match
    }
    contexts = [match for match in map(_CONTEXT.fullmatch, state) if match]
    depths = Counter(int(match[1]) for match in contexts)
    _check_gaps({(int(match[1]), int(match[2])) for match in contexts})
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


def check_dimensions(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors of which no setting could be read off.

    Args:
        state: State dict, without prefix.

    Raises:
        CheckpointError: If a tensor has dimensions that no FocalNet has.
    """
    for key, value in state.items():
        expected = next((n for name, n in _DIMENSIONS.items() if re.fullmatch(name, key)), None)
        if expected is not None and (value.ndim != expected or not value.numel()):
            raise CheckpointError(
                f'has {key} of shape {tuple(value.shape)} where {expected} dimensions, none of '
                'them 0, were expected: it is no FocalNet, or damaged.'
            )


def _check_gaps(blocks: set[tuple[int, int]]) -> None:
    """Refuse a network that lacks one of its (stage, block), which is no shallower one."""
    stages = {stage for stage, _ in blocks}
    missing = [f'stage {i}' for i in range(len(stages)) if i not in stages]
    for i in sorted(stages):
        own = {block for stage, block in blocks if stage == i}
        missing += [f'block {j} of stage {i}' for j in range(len(own)) if j not in own]
    if missing:
        raise CheckpointError(
            f'is damaged or cut: {missing[0]} is missing, though later ones are there; take a '
            'whole checkpoint.'
        )


def _drop(source: Mapping[str, Tensor], target: Mapping[str, Tensor], report: FitReport) -> State:
    # A classifier's final norm saw other features than any output norm of the backbone.
    report.dropped = [
        key
        for key in source
        if key in CLASSIFIER or (OUTPUT_NORM.fullmatch(key) and key not in target)
    ]
    return {key: value for key, value in source.items() if key not in report.dropped}


def _check_architecture(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    theirs, ours = describe(state), describe(target)
    differences = [
        f'{name} is {theirs[name]} in the checkpoint and {ours[name]} in the model'
        for name in theirs
        if name not in _FITTED and theirs[name] != ours[name]
    ]
    if differences:
        raise CheckpointError(
            f'is of another architecture: {", ".join(differences)}; change the backbone '
            'settings or take another checkpoint.'
        )


def _complete(state: State, target: Mapping[str, Tensor], report: FitReport) -> State:
    fresh = [key for key in target if key not in state and OUTPUT_NORM.fullmatch(key)]
    report.fresh = fresh + report.fresh
    state = {**state, **{key: target[key] for key in fresh}}
    problems = [
        listed(sorted(state.keys() - target.keys()), 'unexpected keys'),
        listed(sorted(target.keys() - state.keys()), 'missing keys'),
        listed(
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


def _below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _check_levels(block: str, modulation: State, old: int, new: int) -> None:
    place = block.removesuffix('.modulation.')
    if old > new:
        raise CheckpointError(
            f'has {old} focal levels at {place} but the model has {new}, and '
            f'levels cannot be removed: set focal_levels={old} for that stage (--levels {old} or '
            f'more), or take the checkpoint with {new} levels.'
        )
    kernels = {f'focal_layers.{level}.0.weight' for level in range(old)}
    if {key for key in modulation if key.startswith('focal_layers.')} != kernels:
        raise CheckpointError(
            f'has gates for {old} focal levels at {place}, but kernels of others: it is damaged.'
        )
