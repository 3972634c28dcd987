"""Reading checkpoints safely, fitting kernels and levels, loading them into a backbone."""

from mmfocalnet.checkpoints.fit import FitReport, describe, fit_state
from mmfocalnet.checkpoints.load import fit_checkpoint, load_pretrained
from mmfocalnet.checkpoints.read import (
    check_file,
    fetch,
    load_file,
    read_checkpoint,
    reads_training_checkpoints,
)
from mmfocalnet.errors import CheckpointError

__all__ = [
    'CheckpointError',
    'FitReport',
    'check_file',
    'describe',
    'fetch',
    'fit_checkpoint',
    'fit_state',
    'load_file',
    'load_pretrained',
    'read_checkpoint',
    'reads_training_checkpoints',
]
