"""Shared code of the tools: flags, checks, runner and error messages."""

from mmfocalnet.cli.config_flags import load_config, scale_lr, use_amp, use_drawing, use_tta
from mmfocalnet.cli.error_handling import print_error, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, add_common_flags, integer_flag
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.cli.run_errors import RunError
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
    'integer_flag',
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
