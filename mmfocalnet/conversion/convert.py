"""Convert a checkpoint of any known layout to another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmfocalnet.checkpoints.dino import class_names, count_classes, find_detector, to_mmdet
from mmfocalnet.checkpoints.fit import FitReport, fit_state, mismatch
from mmfocalnet.checkpoints.layouts import CLASSIFIER, OUTPUT_NORM, Network, State, select_network
from mmfocalnet.checkpoints.read import Checkpoint, check_finite, open_checkpoint
from mmfocalnet.conversion.architecture import (
    FROM_FILE,
    FROM_USER,
    Architecture,
    deduce,
    output_stages,
)
from mmfocalnet.conversion.write import write_ours, write_release, write_timm, write_transformers
from mmfocalnet.errors import CheckpointError, ConfigError
from mmfocalnet.models import FocalNet
from mmfocalnet.text import join_keys
from mmfocalnet.version import __version__

# Metadata of training checkpoints that tools read to draw predictions.
_KEPT_META = ('CLASSES', 'PALETTE', 'dataset_meta')


@dataclass(frozen=True)
class Inspection:
    """Content of a checkpoint.

    Attributes:
        checkpoint: Its tensors and metadata as they are in the file.
        network: The FocalNet in it, in the release's names.
        architecture: The architecture of that network.
        with_others: Whether a conversion includes the other modules in the file (neck, heads).
            False if a prefix selects one network.
    """

    checkpoint: Checkpoint
    network: Network
    architecture: Architecture
    with_others: bool


@dataclass(frozen=True)
class Changes:
    """Changes to make during a conversion.

    Attributes:
        windows: Kernel size at the first focal level, of all stages or of each. Defaults to
            (): unchanged.
        levels: Focal levels of all stages. Defaults to None: unchanged.
        keep_function: Add those levels so that the outputs stay the same; see
            `mmfocalnet.checkpoints.insert_levels`. Defaults to False.
        keep_classes: Keep the 91 logits of FocalNet-DINO. Defaults to False: COCO's 80 classes.
        allow_nonfinite: Convert NaN and infinite weights. Defaults to False.
    """

    windows: Sequence[int] = ()
    levels: int | None = None
    keep_function: bool = False
    keep_classes: bool = False
    allow_nonfinite: bool = False


def inspect_checkpoint(
    source: str | os.PathLike,
    prefix: str | None = None,
    given: Mapping[str, bool] | None = None,
) -> Inspection:
    """Find the FocalNet in a checkpoint and deduce its architecture.

    Args:
        source: As for `mmfocalnet.checkpoints.fetch`.
        prefix: Prefix of the network's keys. Defaults to None: detected.
        given: ``use_postln`` and ``normalize_modulator``, to override those of the file. Defaults
            to None.

    Returns:
        The content of the checkpoint.

    Raises:
        CheckpointError: If the file cannot be read or contains no FocalNet.
    """
    checkpoint = open_checkpoint(source)
    network = select_network(checkpoint, prefix)
    return Inspection(checkpoint, network, deduce(network, given), with_others=prefix is None)


def convert(
    inspection: Inspection, destination: str | os.PathLike, to: str, changes: Changes | None = None
) -> str:
    """Fit the network of a checkpoint and write it in another layout.

    mmfocalnet's own layout keeps a complete model (backbone, neck and heads), unless a prefix
    selects one FocalNet; published DINO detectors get mmdet's names. The other layouts contain the
    FocalNet only.

    Args:
        inspection: The result of `inspect_checkpoint`.
        destination: File to write, or folder for transformers.
        to: One of `mmfocalnet.conversion.DESTINATIONS`.
        changes: Changes to make. Defaults to None: no changes.

    Returns:
        One line that lists the changes and what was left out.

    Raises:
        CheckpointError: If the weights are incomplete or not finite, do not fit, cannot be
            expressed in the layout, or cannot be written.
    """
    changes = changes or Changes()
    network = inspection.network
    with_others = to == 'ours' and inspection.with_others and bool(network.others)
    if not changes.allow_nonfinite:
        state = inspection.checkpoint.state if with_others else network.state
        check_finite(state, network.checkpoint)
    settings = _changed_settings(inspection, changes)
    _check_classifier(network, settings)
    state, report = _fit(network, settings, changes.keep_function)
    notes = []
    if report.function_kept:
        state, notes = _for_inference(state)
    if to == 'timm' and settings['normalize_modulator']:
        notes.append('pass normalize_modulator=True to timm, which sets it in no named network')
    left_out = [] if with_others else list(network.others)
    content = _with_others(state, inspection) if with_others else state
    if with_others and find_detector(content):
        content = to_mmdet(content, changes.keep_classes, network.checkpoint)
        notes.append(f"{count_classes(content)} classes, keys renamed to those of mmdet's DINO")
    left_out += _write(content, inspection, settings, destination, to)
    return '; '.join(filter(None, [str(report), *notes, join_keys(left_out, 'left out')]))


def loading_problem(inspection: Inspection) -> str | None:
    """Check that a network loads into the deduced backbone; return the error message or None.

    Args:
        inspection: The result of `inspect_checkpoint`.

    Returns:
        The message, or None if it loads.
    """
    network = inspection.network
    try:
        check_finite(network.state, network.checkpoint)
        _fit(network, inspection.architecture.settings)
    except CheckpointError as error:
        return str(error)
    return None


def _write(
    state: State,
    inspection: Inspection,
    settings: Mapping[str, Any],
    destination: str | os.PathLike,
    to: str,
) -> list[str]:
    """Write in the destination's layout; return the keys that it cannot contain."""
    config = inspection.checkpoint.metadata.get('config.json')
    config = config if isinstance(config, dict) else {}
    # The class names of transformers' config.json.
    labels = {k: config[k] for k in ('id2label', 'label2id') if isinstance(config.get(k), dict)}
    if to == 'ours':
        write_ours(state, _meta(state, inspection, settings), destination)
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


def _for_inference(state: State) -> tuple[State, list[str]]:
    """Prepare a network with levels that keep its function; return it and notes for the user."""
    notes = ['for inference only']
    half = [key for key, value in state.items() if value.dtype == torch.float16]
    if half:
        # Libraries load all weights in one type, and the scaled kernels overflow in float16.
        state = {**state, **{key: state[key].float() for key in half}}
        notes.append('float16 stored as float32, because these levels overflow in float16')
    return state, notes


def _check_classifier(network: Network, settings: Mapping[str, Any]) -> None:
    """Check the shapes of final norm and head."""
    own = {key: tuple(network.state[key].shape) for key in CLASSIFIER if key in network.state}
    channels = settings['embed_dim'] * 2 ** (len(settings['depths']) - 1)
    expected = dict.fromkeys(('norm.weight', 'norm.bias'), (channels,)) if own else {}
    if 'head.weight' in own or 'head.bias' in own:
        classes = own.get('head.weight', own.get('head.bias'))[:1]
        expected |= {'head.weight': (*classes, channels), 'head.bias': classes}
    wrong = [
        f'{key} {own.get(key, "missing")}, expected {shape}'
        for key, shape in expected.items()
        if own.get(key) != shape
    ]
    if wrong:
        raise CheckpointError(
            f'{network.checkpoint} has a classifier that does not match ({"; ".join(wrong)}). '
            'Remove its norm and head from the file, or use a complete checkpoint.'
        )


def _changed_settings(inspection: Inspection, changes: Changes) -> dict[str, Any]:
    name, settings = inspection.checkpoint.name, inspection.architecture.settings
    changed, stages = dict(settings), len(settings['depths'])
    windows = list(changes.windows)
    if len(windows) not in (0, 1, stages):
        raise CheckpointError(
            f'{name} has {stages} stages, but --windows has {len(windows)} values. Specify one for '
            'all stages or one for each.'
        )
    if windows:
        changed['focal_windows'] = windows * stages if len(windows) == 1 else windows
    if changes.levels is not None:
        changed['focal_levels'] = [changes.levels] * stages
    if changes.keep_function and changed['focal_levels'] == settings['focal_levels']:
        raise CheckpointError(
            f'--keep-function needs levels to add, and {name} already has the focal levels '
            f'{settings["focal_levels"]}. Specify --levels N, or omit --keep-function.'
        )
    return changed


def _fit(
    network: Network, settings: Mapping[str, Any], keep_function: bool = False
) -> tuple[State, FitReport]:
    """Fit a network to settings; its classifier stays unchanged. Unknown keys raise an error."""
    state, stages = network.state, output_stages(network.state)
    try:
        with torch.device('meta'):
            model = FocalNet(**settings, out_indices=stages or None)
    except ConfigError as error:
        raise CheckpointError(
            f'{network.checkpoint} does not match any FocalNet: {error}'
        ) from error
    target = model.state_dict()
    if not stages:
        target = {key: value for key, value in target.items() if not OUTPUT_NORM.fullmatch(key)}
    classifier = {key: state[key] for key in CLASSIFIER if key in state}
    fitted, report = fit_state(
        {key: value for key, value in state.items() if key not in classifier},
        target,
        keep_function=keep_function,
        normalize_modulator=settings['normalize_modulator'],
        name=network.checkpoint,
    )
    if report.initial:  # unlike a model, a file has no initial values for them
        raise mismatch(network.checkpoint, join_keys(report.initial, 'missing keys'))
    return {**fitted, **classifier}, report


def _with_others(state: State, inspection: Inspection) -> State:
    """Combine the fitted network with the neck and heads of its file."""
    network = inspection.network
    prefix = network.prefix.removeprefix('module.')
    others = {
        key.removeprefix('module.'): inspection.checkpoint.state[key] for key in network.others
    }
    return {**{prefix + key: value for key, value in state.items()}, **others}


def _meta(state: State, inspection: Inspection, settings: Mapping[str, Any]) -> dict[str, Any]:
    origins = inspection.architecture.origins
    ours = dict(
        version=__version__,
        source=inspection.network.source,
        backbone=dict(settings),
        assumed=[key for key, origin in origins.items() if origin not in (FROM_FILE, FROM_USER)],
    )
    metadata = inspection.checkpoint.metadata
    kept = {key: metadata[key] for key in _KEPT_META if key in metadata}
    detector = inspection.network.detector
    if detector and count_classes(state):
        kept['dataset_meta'] = dict(classes=class_names(detector, state))
    return dict(mmfocalnet=ours, **kept)
