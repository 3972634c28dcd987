"""What the tools share: flags, checks before a run, the run, how errors are reported."""

from mmfocalnet.cli.config_changes import load_config, scale_lr, use_amp, use_drawing, use_tta
from mmfocalnet.cli.error_handling import RunError, print_error, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, add_common_flags, integer
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.cli.runner import build_runner, check_model, test, train
from mmfocalnet.cli.strategy_checks import check_strategy, drop_strategy

__all__ = [
    'RunError',
    'add_cfg_options',
    'add_common_flags',
    'build_runner',
    'check_model',
    'check_strategy',
    'drop_strategy',
    'integer',
    'load_config',
    'load_initial_checkpoint',
    'print_error',
    'print_lines',
    'report_errors',
    'scale_lr',
    'test',
    'train',
    'use_amp',
    'use_drawing',
    'use_tta',
]
