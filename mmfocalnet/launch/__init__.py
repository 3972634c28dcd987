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
from mmfocalnet.launch.flags import (
    add_cfg_options,
    add_common_flags,
    check_file,
    check_folder,
    integer,
    make_folder,
)
from mmfocalnet.launch.runs import build_runner, check_model, train
from mmfocalnet.launch.sentences import one_sentence_errors, print_error, print_lines
from mmfocalnet.launch.settings import naming_any
from mmfocalnet.launch.sharding import check_strategy, drop_strategy
from mmfocalnet.launch.start import check_fits, check_start

__all__ = [
    'add_cfg_options',
    'add_common_flags',
    'build_runner',
    'check_data',
    'check_file',
    'check_fits',
    'check_folder',
    'check_model',
    'check_paths',
    'check_start',
    'check_strategy',
    'drop_strategy',
    'find_evaluator',
    'integer',
    'load_config',
    'make_folder',
    'naming_any',
    'one_sentence_errors',
    'override',
    'print_error',
    'print_lines',
    'read_config',
    'scale_lr',
    'train',
    'use_amp',
    'use_drawing',
    'use_tta',
]
