"""Flags that tools/convert_checkpoint.py and tools/inspect_checkpoint.py share."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmfocalnet.conversion.convert import Inspection


def add_source_flags(parser: ArgumentParser) -> None:
    """Add the checkpoint to read, its prefix and settings that override those of the file."""
    parser.add_argument(
        'source', help='path, http(s) URL or Hugging Face id such as microsoft/focalnet-tiny'
    )
    parser.add_argument(
        '--prefix', help="prefix of the network's keys, if the file contains several networks"
    )
    parser.add_argument(
        '--use-postln',
        action=BooleanOptionalAction,
        help='whether its blocks are post-norm; overrides the setting in the file',
    )
    parser.add_argument(
        '--normalize-modulator',
        action=BooleanOptionalAction,
        help='whether its modulator is normalized; overrides the setting in the file',
    )


def inspect_source(args: Namespace) -> Inspection:
    """Inspect the checkpoint specified by the flags of `add_source_flags`.

    Raises:
        CheckpointError: If the file cannot be read or contains no FocalNet.
    """
    from mmfocalnet.checkpoints.metadata import METADATA_SETTINGS  # slow imports
    from mmfocalnet.conversion.convert import inspect_checkpoint

    flags = {key: getattr(args, key) for key in METADATA_SETTINGS}
    given = {key: value for key, value in flags.items() if value is not None}
    return inspect_checkpoint(args.source, args.prefix, given)
