"""Loading a checkpoint into a backbone of any window and level setting."""

from __future__ import annotations

import os

from mmengine.logging import print_log
from torch import nn

from mmfocalnet.checkpoints.fit import FitReport, fit_state, select_prefix
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
    state = read_checkpoint(checkpoint)
    try:
        selected, prefix = select_prefix(state, prefix)
        fitted, report = fit_state(selected, model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint} {error}') from None
    model.load_state_dict(fitted)
    origin = f' (keys below {prefix!r}; {len(state) - len(selected)} others left out)'
    print_log(f'Loaded {checkpoint}{origin if prefix else ""}: {report}.', logger='current')
    return report
