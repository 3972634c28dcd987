"""Reading checkpoints safely, fitting kernels and levels, loading them into a backbone."""

from mmfocalnet.checkpoints.fit import FitReport, describe, fit_state
from mmfocalnet.checkpoints.load import load_pretrained
from mmfocalnet.checkpoints.read import (
    fetch,
    load_file,
    read_checkpoint,
    reads_training_checkpoints,
)
from mmfocalnet.errors import CheckpointError

__all__ = [
    'CheckpointError',
    'FitReport',
    'describe',
    'fetch',
    'fit_state',
    'load_file',
    'load_pretrained',
    'read_checkpoint',
    'reads_training_checkpoints',
]
