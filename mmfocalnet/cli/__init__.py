"""What the tools share: flags, checks before a run, the run, how errors are printed."""

from mmfocalnet.cli.config_flags import load_config, scale_lr, use_amp, use_drawing, use_tta
from mmfocalnet.cli.error_handling import print_error, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, add_common_flags, integer
from mmfocalnet.cli.initial_checkpoint import check_start
from mmfocalnet.cli.runner import build_runner, check_model, train
from mmfocalnet.cli.settings import naming_any
from mmfocalnet.cli.strategy import check_strategy, drop_strategy

__all__ = [
    'add_cfg_options',
    'add_common_flags',
    'build_runner',
    'check_model',
    'check_start',
    'check_strategy',
    'drop_strategy',
    'integer',
    'load_config',
    'naming_any',
    'print_error',
    'print_lines',
    'report_errors',
    'scale_lr',
    'train',
    'use_amp',
    'use_drawing',
    'use_tta',
]
