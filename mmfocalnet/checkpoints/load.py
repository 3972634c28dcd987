"""Loading a checkpoint into a backbone of any window and level setting."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from mmfocalnet.checkpoints.fit import FitReport, fit_state
from mmfocalnet.checkpoints.layouts import Network, State, select_network
from mmfocalnet.checkpoints.read import check_finite, open_checkpoint
from mmfocalnet.errors import CheckpointError


def load_pretrained(
    model: nn.Module, checkpoint: str | os.PathLike, prefix: str | None = None
) -> FitReport:
    """Load pretrained weights of any known layout, fitted to the model.

    Nothing is skipped silently: one line of the log says where the weights come from and what
    is dropped, resized or left at its initial values, and whatever is not understood raises.

    Args:
        model: A `FocalNet` with initial values.
        checkpoint: As for `mmfocalnet.checkpoints.fetch`: path, http(s) URL or Hugging Face id.
        prefix: What stands before the backbone's keys. Defaults to None: found by itself.

    Returns:
        What was changed.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit, or the model has
            another mixer; one sentence that names it.
    """
    block = model.layers[0].blocks[0]
    normalize_modulator = getattr(block.modulation, 'normalize_modulator', None)
    if normalize_modulator is None:
        raise CheckpointError(
            f'{checkpoint} holds focal modulation at most, and the model mixes tokens by '
            f"{type(block.modulation).__name__}: build it with mixer='focal_modulation', or load "
            'a state dict of the same model with model.load_state_dict.'
        )
    fitted, report, network = fit_checkpoint(
        checkpoint, model.state_dict(), prefix, normalize_modulator
    )
    told = network.settings
    if told.get('use_postln', block.use_postln) != block.use_postln:
        raise CheckpointError(
            f'{checkpoint} has use_postln={told["use_postln"]} and the model '
            f'use_postln={block.use_postln}: change that setting of the backbone.'
        )
    model.load_state_dict(fitted)
    untold = '' if 'use_postln' in told else '; post-norm not told by the file'
    print_log(f'Loaded {checkpoint} ({network}): {report}{untold}.', logger='current')
    if told.get('normalize_modulator', normalize_modulator) != normalize_modulator:
        # Peers disagree on it for the same weights, so that it is no error.
        print_log(
            f'{checkpoint} says normalize_modulator={told["normalize_modulator"]}, the model '
            f'has normalize_modulator={normalize_modulator}.',
            logger='current',
            level=logging.WARNING,
        )
    return report


def fit_checkpoint(
    checkpoint: str | os.PathLike,
    target: Mapping[str, Tensor],
    prefix: str | None = None,
    normalize_modulator: bool = False,
) -> tuple[State, FitReport, Network]:
    """Read a checkpoint and fit it to a model's state dict, without touching the model.

    Args:
        checkpoint: As for `mmfocalnet.checkpoints.fetch`.
        target: State dict of the model; it may be on the meta device.
        prefix: What stands before the backbone's keys. Defaults to None: found by itself.
        normalize_modulator: That setting of the model, which counts where levels are added.
            Defaults to False.

    Returns:
        The state dict to load, what was changed, and the network as it was found.

    Raises:
        CheckpointError: If the checkpoint cannot be read, has NaN or infinite weights or does
            not fit; one sentence that names it.
    """
    content = open_checkpoint(checkpoint)
    try:
        network = select_network(content.state, prefix, content.metadata)
        check_finite(network.state)
        fitted, report = fit_state(network.state, target, normalize_modulator=normalize_modulator)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint} {error}') from None
    return fitted, report, network
