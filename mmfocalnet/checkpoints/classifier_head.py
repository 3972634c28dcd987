"""Checkpoints of image classifiers: a FocalNet, its final norm and a linear layer."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from mmfocalnet.checkpoints.layouts import STEM, Network, State, select_network
from mmfocalnet.checkpoints.read import Checkpoint, check_finite, open_checkpoint
from mmfocalnet.errors import CheckpointError

BACKBONE = 'backbone.'
HEAD = ('head.weight', 'head.bias')
# mmpretrain's ImageClassifier has the same parts; its LinearClsHead keeps the layer as fc.
_MMPRETRAIN = {'head.fc.weight': 'head.weight', 'head.fc.bias': 'head.bias'}


def name_as_classifier(state: Mapping[str, Tensor], norm: str) -> State:
    """Rename a state dict from the release's or mmpretrain's names to `FocalNetClassifier`'s.

    The release has one network without parts: ``layers...``, ``norm`` and ``head``;
    mmpretrain's ``ImageClassifier`` has ``backbone...`` and ``head.fc``.

    Args:
        state: State dict; one that is in neither's names keeps its own.
        norm: Name of the backbone's last output norm, such as ``'norm3'``.

    Returns:
        A new state dict with the same tensors.
    """
    if STEM not in state:
        return {_MMPRETRAIN.get(key, key): value for key, value in state.items()}
    return {_renamed(key, norm): value for key, value in state.items()}


def read_head(checkpoint: str | os.PathLike, target: Mapping[str, Tensor], norm: str) -> State:
    """Read from a classifier of any known layout what it has beside its backbone.

    Args:
        checkpoint: As for `mmfocalnet.checkpoints.fetch`.
        target: State dict of a `FocalNetClassifier`; it may be on the meta device.
        norm: Name of its backbone's output norm, such as ``'norm3'``.

    Returns:
        Final norm and linear layer, named as in the target.

    Raises:
        CheckpointError: If the checkpoint cannot be read, is of no classifier, or has other
            classes or widths; one sentence that names it.
    """
    content = open_checkpoint(checkpoint)
    try:
        state = _own_part(content, norm)
        check_finite(state)
        _check_shapes(state, target)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint} {error}') from None
    return state


def _own_part(content: Checkpoint, norm: str) -> State:
    network = select_network(content.state, None, content.metadata)
    state = name_as_classifier({**network.state, **_head_beside(content, network)}, norm)
    keys = (f'{BACKBONE}{norm}.weight', f'{BACKBONE}{norm}.bias', *HEAD)
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(
            f'is of no image classifier ({", ".join(missing)} missing): give it to '
            'model.backbone.init_cfg instead of model.init_cfg, to start with a new linear layer.'
        )
    return {key: state[key] for key in keys}


def _head_beside(content: Checkpoint, network: Network) -> State:
    """The linear layer, where the network is the backbone of our or mmpretrain's classifier."""
    if not network.prefix.endswith(BACKBONE):
        return {}
    outer = network.prefix.removesuffix(BACKBONE)
    names = {**dict(zip(HEAD, HEAD, strict=True)), **_MMPRETRAIN}
    return {
        ours: content.state[outer + name]
        for name, ours in names.items()
        if outer + name in content.state
    }


def _check_shapes(state: State, target: Mapping[str, Tensor]) -> None:
    theirs, ours = (weights[HEAD[0]].shape[0] for weights in (state, target))
    if theirs != ours:
        raise CheckpointError(
            f'is of {theirs} classes and the model of {ours}: set model.num_classes={theirs}, or, '
            'for other classes, give the checkpoint to model.backbone.init_cfg instead of '
            'model.init_cfg.'
        )
    wrong = [key for key, value in state.items() if value.shape != target[key].shape]
    if wrong:
        raise CheckpointError(
            f'is of another width ({wrong[0]} {tuple(state[wrong[0]].shape)} for '
            f'{tuple(target[wrong[0]].shape)}): change backbone.arch, or take another checkpoint.'
        )


def _renamed(key: str, norm: str) -> str:
    if key in HEAD:
        return key
    part, _, rest = key.partition('.')
    return f'{BACKBONE}{norm}.{rest}' if part == 'norm' else f'{BACKBONE}{key}'
