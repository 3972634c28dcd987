"""Loading a checkpoint into a backbone of any window and level setting."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from mmfocalnet.checkpoints.fit import FitReport, State, fit_state, select_prefix
from mmfocalnet.checkpoints.read import read_checkpoint
from mmfocalnet.errors import CheckpointError


def load_pretrained(
    model: nn.Module, checkpoint: str | os.PathLike, prefix: str | None = None
) -> FitReport:
    """Load pretrained weights; kernels and focal levels are fitted to the model.

    Nothing is skipped silently: what is dropped, resized or left at its initial values is
    said in one line of the log, and whatever is not understood raises.

    Args:
        model: A `FocalNet` with initial values.
        checkpoint: Path or http(s) URL of a state dict, possibly wrapped.
        prefix: What stands before the backbone's keys. Defaults to None: found by itself.

    Returns:
        What was changed.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit; one sentence that
            names it.
    """
    fitted, report, origin = fit_checkpoint(checkpoint, model.state_dict(), prefix)
    model.load_state_dict(fitted)
    print_log(f'Loaded {checkpoint}{origin}: {report}.', logger='current')
    return report


def fit_checkpoint(
    checkpoint: str | os.PathLike, target: Mapping[str, Tensor], prefix: str | None = None
) -> tuple[State, FitReport, str]:
    """Read a checkpoint and fit it to a model's state dict, without touching the model.

    Args:
        checkpoint: Path or http(s) URL.
        target: State dict of the model; it may be on the meta device.
        prefix: What stands before the backbone's keys. Defaults to None: found by itself.

    Returns:
        The state dict to load, what was changed, and a remark on where it was found.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit; one sentence that
            names it.
    """
    state = read_checkpoint(checkpoint)
    try:
        selected, prefix = select_prefix(state, prefix)
        fitted, report = fit_state(selected, target)
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint} {error}') from None
    others = len(state) - len(selected)
    return fitted, report, f' (keys below {prefix!r}; {others} others left out)' if prefix else ''
