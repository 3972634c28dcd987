"""Read checkpoints safely and fit their state dicts to a model: files and dicts only."""

from mmfocalnet.checkpoints.classifier_head import name_as_classifier, read_head
from mmfocalnet.checkpoints.download import fetch
from mmfocalnet.checkpoints.fit import (
    FitReport,
    describe,
    fit_checkpoint,
    fit_state,
)
from mmfocalnet.checkpoints.levels import append_levels, insert_levels
from mmfocalnet.checkpoints.read import (
    Checkpoint,
    cached_reads,
    check_finite,
    check_has_weights,
    load_once,
    open_checkpoint,
    published_detector,
    read_checkpoint,
)
from mmfocalnet.checkpoints.resize import (
    adapt_input_channels,
    kernel_energy,
    resize_kernel,
    resize_patch_embedding,
)
from mmfocalnet.checkpoints.safe_load import load_file
from mmfocalnet.errors import CheckpointError

__all__ = [
    'Checkpoint',
    'CheckpointError',
    'FitReport',
    'adapt_input_channels',
    'append_levels',
    'cached_reads',
    'check_finite',
    'check_has_weights',
    'describe',
    'fetch',
    'fit_checkpoint',
    'fit_state',
    'insert_levels',
    'kernel_energy',
    'load_file',
    'load_once',
    'name_as_classifier',
    'open_checkpoint',
    'published_detector',
    'read_checkpoint',
    'read_head',
    'resize_kernel',
    'resize_patch_embedding',
]
