"""Converting a checkpoint of any known layout into any other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmfocalnet.checkpoints.fit import fit_state
from mmfocalnet.checkpoints.fit_report import FitReport
from mmfocalnet.checkpoints.layouts import CLASSIFIER, OUTPUT_NORM, Network, State, select_network
from mmfocalnet.checkpoints.read import Checkpoint, check_finite, open_checkpoint
from mmfocalnet.conversion.architecture import GIVEN, TOLD, Architecture, deduce, output_stages
from mmfocalnet.conversion.write import write_ours, write_release, write_timm, write_transformers
from mmfocalnet.errors import CheckpointError, ConfigError
from mmfocalnet.models import FocalNet
from mmfocalnet.text import listed
from mmfocalnet.version import __version__

DESTINATIONS = ('ours', 'timm', 'transformers', 'release')
# What tools that draw predictions look for in a training checkpoint's metadata.
_KEPT_META = ('CLASSES', 'PALETTE', 'dataset_meta')


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, found out without changing anything.

    Attributes:
        checkpoint: Its tensors and metadata as they are in the file.
        network: The FocalNet in it, in the release's names.
        architecture: Which FocalNet that is.
        whole: Whether what else is in the file (neck, heads) counts as well: always, unless
            one network was asked for by its prefix.
    """

    checkpoint: Checkpoint
    network: Network
    architecture: Architecture
    whole: bool


@dataclass(frozen=True)
class Changes:
    """What to change on the way.

    Attributes:
        windows: Kernel size at the first focal level, of all stages or of each. Defaults to
            (): as it is.
        levels: Focal levels of all stages. Defaults to None: as they are.
        keep_function: Add those levels so that the outputs stay the same; see
            `mmfocalnet.checkpoints.insert_levels`. Defaults to False.
        allow_nonfinite: Take NaN and infinite weights as they are. Defaults to False.
    """

    windows: Sequence[int] = ()
    levels: int | None = None
    keep_function: bool = False
    allow_nonfinite: bool = False


def inspect(
    source: str | os.PathLike,
    prefix: str | None = None,
    given: Mapping[str, bool] | None = None,
) -> Inspection:
    """Find out where a checkpoint comes from and which FocalNet it holds.

    Args:
        source: As for `mmfocalnet.checkpoints.fetch`.
        prefix: What stands before the network's keys. Defaults to None: found by itself.
        given: ``use_postln`` and ``normalize_modulator`` where the user knows better than the
            file. Defaults to None.

    Returns:
        What was found.

    Raises:
        CheckpointError: If the file cannot be read or holds no FocalNet; one sentence that
            names it.
    """
    checkpoint = open_checkpoint(source)
    try:
        network = select_network(checkpoint.state, prefix, checkpoint.metadata)
        architecture = deduce(network.state, network.settings, given, network.layout)
    except CheckpointError as error:
        raise CheckpointError(f'{source} {error}') from None
    return Inspection(checkpoint, network, architecture, whole=prefix is None)


def convert(
    inspection: Inspection, destination: str | os.PathLike, to: str, changes: Changes | None = None
) -> str:
    """Fit the network of a checkpoint and write it in another layout.

    A whole model (backbone, neck and heads) stays whole in mmfocalnet's own layout, unless its
    FocalNet was asked for by its prefix; the other layouts take the FocalNet alone.

    Args:
        inspection: Of `inspect`.
        destination: File to write, or folder for transformers.
        to: One of `DESTINATIONS`.
        changes: What to change on the way. Defaults to None: nothing.

    Returns:
        What was changed and what was left out, in one line.

    Raises:
        CheckpointError: If the weights do not make up such a network or are not finite, it
            cannot be fitted or expressed, or nothing can be written there.
    """
    changes = changes or Changes()
    path = inspection.checkpoint.path
    network = inspection.network
    keeps_others = to == 'ours' and inspection.whole and bool(network.others)
    try:
        if not changes.allow_nonfinite:
            check_finite(inspection.checkpoint.state if keeps_others else network.state)
        settings = _changed(inspection.architecture.settings, changes)
        _check_classifier(network.state, settings)
        state, report = _fit(network.state, settings, changes.keep_function)
    except CheckpointError as error:
        raise CheckpointError(f'{path} {error}') from None
    notes = []
    if report.function_kept:
        state, notes = _for_inference(state)
    if to == 'timm' and settings['normalize_modulator']:
        notes.append('pass normalize_modulator=True to timm, which has it in no named network')
    left_out = [] if keeps_others else list(network.others)
    content = _whole(state, inspection) if keeps_others else state
    left_out += _write(content, inspection, settings, destination, to)
    return '; '.join(filter(None, [str(report), *notes, listed(left_out, 'left out')]))


def _write(
    state: State,
    inspection: Inspection,
    settings: Mapping[str, Any],
    destination: str | os.PathLike,
    to: str,
) -> list[str]:
    """Write in the layout of the destination; returns what has no place there."""
    labels = _labels(inspection)
    if to == 'ours':
        write_ours(state, _meta(inspection, settings), destination)
        return list(labels)
    if to == 'release':
        write_release(state, destination)
        return list(labels)
    # Neither timm's nor transformers' networks have output norms.
    norms = [key for key in state if OUTPUT_NORM.fullmatch(key)]
    state = {key: value for key, value in state.items() if key not in norms}
    if to == 'timm':
        write_timm(state, settings, destination)
        return norms + list(labels)
    fit = len(labels) == 2 and len(labels['id2label']) == len(state.get('head.weight', ()))
    write_transformers(state, settings, destination, labels if fit else None)
    return norms if fit else norms + list(labels)


def loading_problem(inspection: Inspection) -> str | None:
    """Why the network of a checkpoint does not load into the backbone that it seems to be.

    Args:
        inspection: Of `inspect`.

    Returns:
        The reason, or None if it does load.
    """
    state = inspection.network.state
    try:
        check_finite(state)
        _fit(state, inspection.architecture.settings)
    except CheckpointError as error:
        return str(error)
    return None


def _labels(inspection: Inspection) -> dict[str, Any]:
    """The class names of transformers' ``config.json``, where the file came with one."""
    config = inspection.checkpoint.metadata.get('config.json')
    config = config if isinstance(config, dict) else {}
    names = ('id2label', 'label2id')
    return {key: config[key] for key in names if isinstance(config.get(key), dict)}


def _for_inference(state: State) -> tuple[State, list[str]]:
    """What a network needs that was given levels which keep its function."""
    notes = ['for inference only']
    half = [key for key, value in state.items() if value.dtype == torch.float16]
    if half:
        # Libraries load a whole file in one type, and the scaled kernels overflow in this one.
        state = {**state, **{key: state[key].float() for key in half}}
        notes.append('float16 stored as float32, for these levels overflow in float16')
    return state, notes


def _check_classifier(state: State, settings: Mapping[str, Any]) -> None:
    """Refuse a final norm and head that do not fit the network and each other."""
    own = {key: tuple(state[key].shape) for key in CLASSIFIER if key in state}
    channels = settings['embed_dim'] * 2 ** (len(settings['depths']) - 1)
    expected = dict.fromkeys(('norm.weight', 'norm.bias'), (channels,)) if own else {}
    if 'head.weight' in own or 'head.bias' in own:
        classes = own.get('head.weight', own.get('head.bias'))[:1]
        expected |= {'head.weight': (*classes, channels), 'head.bias': classes}
    wrong = [
        f'{key} {own.get(key, "missing")} for {shape}'
        for key, shape in expected.items()
        if own.get(key) != shape
    ]
    if wrong:
        raise CheckpointError(
            f'has a classifier that does not fit ({", ".join(wrong)}): remove its norm and head '
            'from the file, or take a whole one.'
        )


def _changed(settings: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    changed, stages = dict(settings), len(settings['depths'])
    windows = list(changes.windows)
    if len(windows) not in (0, 1, stages):
        raise CheckpointError(
            f'has {stages} stages but {len(windows)} windows were given: give one for all '
            'stages or one for each.'
        )
    if windows:
        changed['focal_windows'] = windows * stages if len(windows) == 1 else windows
    if changes.levels is not None:
        changed['focal_levels'] = [changes.levels] * stages
    if changes.keep_function and changed['focal_levels'] == settings['focal_levels']:
        raise CheckpointError(
            f'has focal levels {settings["focal_levels"]} and is given no more, so that there is '
            'nothing to keep the function of: give --levels N, or leave --keep-function out.'
        )
    return changed


def _fit(
    state: State, settings: Mapping[str, Any], keep_function: bool = False
) -> tuple[State, FitReport]:
    """Fit a network, its classifier apart, to settings; whatever does not belong raises."""
    stages = output_stages(state)
    try:
        with torch.device('meta'):
            model = FocalNet(**settings, out_indices=stages or None)
    except ConfigError as error:
        raise CheckpointError(f'would make up no FocalNet: {error}') from None
    target = model.state_dict()
    if not stages:
        target = {key: value for key, value in target.items() if not OUTPUT_NORM.fullmatch(key)}
    classifier = {key: state[key] for key in CLASSIFIER if key in state}
    fitted, report = fit_state(
        {key: value for key, value in state.items() if key not in classifier},
        target,
        keep_function=keep_function,
        normalize_modulator=settings['normalize_modulator'],
    )
    if report.fresh:  # a model to load into has initial values for these, a file has not
        raise CheckpointError(
            f'does not fit the model: {listed(report.fresh, "missing keys")}; use the checkpoint '
            'of this architecture, unchanged.'
        )
    return {**fitted, **classifier}, report


def _whole(state: State, inspection: Inspection) -> State:
    """Put the fitted network back among the neck and heads that it came with."""
    network = inspection.network
    prefix = network.prefix.removeprefix('module.')
    others = {
        key.removeprefix('module.'): inspection.checkpoint.state[key] for key in network.others
    }
    return {**{prefix + key: value for key, value in state.items()}, **others}


def _meta(inspection: Inspection, settings: Mapping[str, Any]) -> dict[str, Any]:
    origins = inspection.architecture.origins
    ours = dict(
        version=__version__,
        source=inspection.network.source,
        backbone=dict(settings),
        assumed=[key for key, origin in origins.items() if origin not in (TOLD, GIVEN)],
    )
    metadata = inspection.checkpoint.metadata
    return dict(mmfocalnet=ours, **{key: metadata[key] for key in _KEPT_META if key in metadata})
