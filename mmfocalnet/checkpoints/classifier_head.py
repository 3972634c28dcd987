"""Checkpoints of image classifiers: a FocalNet, its final norm and a linear layer."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from mmfocalnet.checkpoints.layouts import STEM, State, select_network
from mmfocalnet.checkpoints.read import Checkpoint, check_finite, open_checkpoint
from mmfocalnet.errors import CheckpointError

BACKBONE = 'backbone.'
HEAD = ('head.weight', 'head.bias')
# mmpretrain's ImageClassifier has the same parts; its LinearClsHead stores the layer as fc.
_MMPRETRAIN = {'head.fc.weight': 'head.weight', 'head.fc.bias': 'head.bias'}


def name_as_classifier(state: Mapping[str, Tensor], norm: str) -> State:
    """Rename a state dict from the release's or mmpretrain's names to `FocalNetClassifier`'s.

    The release has ``layers...``, ``norm`` and ``head`` without prefix; mmpretrain's
    ``ImageClassifier`` has ``backbone...`` and ``head.fc``.

    Args:
        state: State dict; other keys are kept.
        norm: Name of the backbone's last output norm, such as ``'norm3'``.

    Returns:
        A new state dict with the same tensors.
    """
    if STEM not in state:
        return {_MMPRETRAIN.get(key, key): value for key, value in state.items()}
    return {_renamed(key, norm): value for key, value in state.items()}


def read_head(checkpoint: str | os.PathLike, target: Mapping[str, Tensor], norm: str) -> State:
    """Read final norm and linear layer from a classifier checkpoint of any known layout.

    Args:
        checkpoint: As for `mmfocalnet.checkpoints.fetch`.
        target: State dict of a `FocalNetClassifier`; it may be on the meta device.
        norm: Name of its backbone's output norm, such as ``'norm3'``.

    Returns:
        Final norm and linear layer, named as in the target.

    Raises:
        CheckpointError: If the checkpoint cannot be read, is not a classifier, or has another
            number of classes or another width.
    """
    content = open_checkpoint(checkpoint)
    state = _select_head(content, norm)
    check_finite(state, content.name)
    theirs, ours = (weights[HEAD[0]].shape[0] for weights in (state, target))
    if theirs != ours:
        raise CheckpointError(
            f'{checkpoint} has {theirs} classes, but the model has {ours}. Set '
            f'model.num_classes={theirs}, or, for other classes, specify the checkpoint as '
            'model.backbone.init_cfg instead of model.init_cfg.'
        )
    wrong = [key for key, value in state.items() if value.shape != target[key].shape]
    if wrong:
        raise CheckpointError(
            f'{checkpoint} has another width than the model ({wrong[0]} '
            f'{tuple(state[wrong[0]].shape)}, expected {tuple(target[wrong[0]].shape)}). Change '
            'backbone.arch, or use another checkpoint.'
        )
    return state


def _select_head(content: Checkpoint, norm: str) -> State:
    network = select_network(content)
    state = dict(network.state)
    if network.prefix.endswith(BACKBONE):  # the backbone of our or mmpretrain's classifier
        outer = network.prefix.removesuffix(BACKBONE)
        for name, key in {**dict(zip(HEAD, HEAD, strict=True)), **_MMPRETRAIN}.items():
            if outer + name in content.state:
                state[key] = content.state[outer + name]
    state = name_as_classifier(state, norm)
    keys = (f'{BACKBONE}{norm}.weight', f'{BACKBONE}{norm}.bias', *HEAD)
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(
            f'{content.name} is not an image classifier ({", ".join(missing)} missing). To start '
            'with a new linear layer, specify it as model.backbone.init_cfg instead of '
            'model.init_cfg.'
        )
    return {key: state[key] for key in keys}


def _renamed(key: str, norm: str) -> str:
    if key in HEAD:
        return key
    part, _, rest = key.partition('.')
    return f'{BACKBONE}{norm}.{rest}' if part == 'norm' else f'{BACKBONE}{key}'
