"""Load pretrained weights into a FocalNet with any windows and levels, or do without."""

from __future__ import annotations

import logging
import os

from mmengine.logging import print_log
from torch import nn

from mmfocalnet.checkpoints import FitReport, fit_checkpoint
from mmfocalnet.config import find_dicts
from mmfocalnet.errors import CheckpointError
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.registry import type_name


def load_pretrained(
    model: nn.Module, checkpoint: str | os.PathLike, prefix: str | None = None
) -> FitReport:
    """Load pretrained weights of any known layout, fitted to the model.

    One log line contains the source of the weights and lists what is dropped, resized or kept at
    its initial values. Unknown keys and shapes raise an error.

    Args:
        model: A `FocalNet` with initial values.
        checkpoint: As for `mmfocalnet.checkpoints.fetch`: path, http(s) URL or Hugging Face id.
        prefix: Prefix of the backbone's keys. Defaults to None: detected.

    Returns:
        The changes.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit, or the model has
            another mixer than focal modulation.
    """
    block = model.layers[0].blocks[0]
    if not isinstance(block.modulation, FocalModulation):
        raise CheckpointError(
            f'{checkpoint} contains FocalModulation weights, but the model uses the mixer '
            f"{type(block.modulation).__name__}. Build it with mixer='focal_modulation', or load "
            'a state dict of the same model with model.load_state_dict.'
        )
    normalize_modulator = block.modulation.normalize_modulator
    fitted, report, network = fit_checkpoint(
        checkpoint, model.state_dict(), prefix, normalize_modulator
    )
    specified = network.settings
    if specified.get('use_postln', block.use_postln) != block.use_postln:
        raise CheckpointError(
            f'{checkpoint} has use_postln={specified["use_postln"]} and the model '
            f'use_postln={block.use_postln}. Change that setting of the backbone.'
        )
    model.load_state_dict(fitted)
    unknown = '' if 'use_postln' in specified else '; use_postln is not specified by the file'
    print_log(f'Loaded {checkpoint} ({network}): {report}{unknown}.', logger='current')
    if specified.get('normalize_modulator', normalize_modulator) != normalize_modulator:
        # timm, transformers and the release disagree on it for the same weights: not an error.
        print_log(
            f'{checkpoint} has normalize_modulator={specified["normalize_modulator"]}, the model '
            f'has normalize_modulator={normalize_modulator}.',
            logger='current',
            level=logging.WARNING,
        )
    return report


def drop_pretrained(model: dict) -> None:
    """Remove the pretrained weights from the config of a model, in place."""
    for part in find_dicts(model):
        settings = part.get('init_cfg') or []
        settings = settings if isinstance(settings, (list, tuple)) else [settings]
        kept = [one for one in settings if type_name(one) not in ('Pretrained', 'PretrainedInit')]
        if len(kept) < len(settings):
            part['init_cfg'] = kept or None
        for key in ('pretrained', 'teacher_ckpt'):
            if isinstance(part.get(key), str):
                part[key] = None
