"""Check that a checkpoint contains the weights of a model."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmfocalnet.checkpoints import check_finite, published_detector, read_checkpoint
from mmfocalnet.checkpoints.dino import find_detector
from mmfocalnet.errors import CheckpointError
from mmfocalnet.models.classifier import FocalNetClassifier
from mmfocalnet.text import join_keys


def check_position_encoding(model: dict[str, Any], content: Any, name: str) -> None:
    """Check that a published DINO detector is of the code base that a config follows.

    The code bases have different position encodings, which are not visible in the weights.

    Args:
        model: Config of the model.
        content: Content of the checkpoint, of `mmfocalnet.checkpoints.load_once`.
        name: Name of the checkpoint, for the message.

    Raises:
        CheckpointError: If the position encoding has another temperature.
    """
    encoding = model.get('positional_encoding')
    temperature = encoding.get('temperature', 10000) if isinstance(encoding, dict) else None
    published = published_detector(content, name)
    detector = find_detector(published or {})
    if detector and temperature not in (None, detector.temperature):
        raise CheckpointError(
            f'{name} is from {detector.source}, which has the temperature {detector.temperature} '
            f'in its position encoding, but model.positional_encoding.temperature is '
            f'{temperature}. Use the config that tools/inspect_checkpoint.py prints.'
        )


def check_fits(model: nn.Module, checkpoint: str) -> None:
    """Check that a checkpoint contains every weight of a model that is tested or resumed.

    Args:
        model: The model as MMEngine built it.
        checkpoint: Its checkpoint, as for `mmfocalnet.checkpoints.fetch`.

    Raises:
        CheckpointError: If weights are missing, have other shapes or another kind of type
            (floating point, integer, ...), or are NaN or infinite.
    """
    state = {
        key.removeprefix('module.'): value for key, value in read_checkpoint(checkpoint).items()
    }
    bare = model.module if is_model_wrapper(model) else model
    if isinstance(bare, FocalNetClassifier):
        state = bare.rename(state)
    own = {key.removeprefix('module.'): value for key, value in model.state_dict().items()}
    wrong = [k for k, value in own.items() if k not in state or state[k].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f'{checkpoint} is not a checkpoint of this config: {len(wrong)} weights are '
            f'missing or have another shape ({join_keys(wrong)}). Use a checkpoint that was '
            'trained with this config, or the config and settings that '
            'tools/inspect_checkpoint.py prints for a published detector.'
        )
    wrong = [f'{k} {state[k].dtype}' for k, value in own.items() if _kind(state[k]) != _kind(value)]
    if wrong:
        raise CheckpointError(
            f'{checkpoint} has {len(wrong)} weights of another type than the model '
            f'({join_keys(wrong)}). Save the weights as floating-point numbers.'
        )
    finite = {key: state[key] for key, value in own.items() if torch.isfinite(value).all()}
    check_finite(finite, str(checkpoint))


def _kind(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return 'boolean'
    if value.is_complex():
        return 'complex'
    return 'floating point' if value.is_floating_point() else 'integer'
