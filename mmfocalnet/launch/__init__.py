"""Command lines: flags, configs and checks before anything is built."""

from mmfocalnet.launch.configs import (
    load_config,
    override,
    read_config,
    scale_lr,
    use_amp,
    use_drawing,
    use_tta,
)
from mmfocalnet.launch.data import check_data, check_paths, find_evaluator
from mmfocalnet.launch.flags import add_cfg_options, add_common_flags, whole_number
from mmfocalnet.launch.runs import build_runner, check_model, train
from mmfocalnet.launch.sentences import one_sentence_errors
from mmfocalnet.launch.settings import naming_any
from mmfocalnet.launch.sharding import check_strategy, drop_strategy
from mmfocalnet.launch.start import check_fits, check_start

__all__ = [
    'add_cfg_options',
    'add_common_flags',
    'build_runner',
    'check_data',
    'check_fits',
    'check_model',
    'check_paths',
    'check_start',
    'check_strategy',
    'drop_strategy',
    'find_evaluator',
    'load_config',
    'naming_any',
    'one_sentence_errors',
    'override',
    'read_config',
    'scale_lr',
    'train',
    'use_amp',
    'use_drawing',
    'use_tta',
    'whole_number',
]
