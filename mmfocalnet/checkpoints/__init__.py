"""Reading checkpoints safely, fitting kernels and levels, loading them into a backbone."""

from mmfocalnet.checkpoints.classifier_head import name_as_classifier, read_head
from mmfocalnet.checkpoints.download import fetch
from mmfocalnet.checkpoints.fit import (
    FitReport,
    describe,
    fit_embedding,
    fit_kernels,
    fit_levels,
    fit_state,
)
from mmfocalnet.checkpoints.levels import append_levels, insert_levels
from mmfocalnet.checkpoints.load import fit_checkpoint, load_pretrained
from mmfocalnet.checkpoints.read import (
    check_finite,
    check_has_weights,
    load_once,
    open_checkpoint,
    read_checkpoint,
    reading_once,
)
from mmfocalnet.checkpoints.resize import (
    adapt_input_channels,
    kernel_energy,
    resize_kernel,
    resize_patch_embedding,
)
from mmfocalnet.checkpoints.safe_load import check_sums, load_file
from mmfocalnet.errors import CheckpointError

__all__ = [
    'CheckpointError',
    'FitReport',
    'adapt_input_channels',
    'append_levels',
    'check_finite',
    'check_has_weights',
    'check_sums',
    'describe',
    'fetch',
    'fit_checkpoint',
    'fit_embedding',
    'fit_kernels',
    'fit_levels',
    'fit_state',
    'insert_levels',
    'kernel_energy',
    'load_file',
    'load_once',
    'load_pretrained',
    'name_as_classifier',
    'open_checkpoint',
    'read_checkpoint',
    'read_head',
    'reading_once',
    'resize_kernel',
    'resize_patch_embedding',
]
