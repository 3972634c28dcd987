"""Command-line flags that tools share."""

from __future__ import annotations

from argparse import Action, ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from typing import Any


class _Options(Action):
    """KEY=VALUE pairs; anything else is a usage error."""

    def __call__(self, parser: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        from mmengine.config import DictAction  # a slow import

        try:
            DictAction(self.option_strings, self.dest)(parser, *args, **kwargs)
        except Exception:  # ValueError, AssertionError or SyntaxError
            parser.error('--cfg-options takes KEY=VALUE pairs, such as train_cfg.max_epochs=1')


def integer_flag(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    """Build a ``type`` of argparse for integers.

    Args:
        minimum: The smallest value allowed.
        maximum: The largest value allowed.
    """

    def integer(text: str) -> int:  # argparse prints this name
        value = int(text)
        if not minimum <= value <= maximum:
            raise ArgumentTypeError(f'{text} is not in the range {minimum} to {maximum}')
        return value

    return integer


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add the flag that overrides settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        help='override settings of the config: KEY=VALUE, lists as key="[a,b]" or key=a,b',
    )


def add_common_flags(parser: ArgumentParser) -> None:
    """Add the flags that train and test share, named as in mmdet and mmseg."""
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torchrun sets the environment variable; older launchers pass the flag.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
