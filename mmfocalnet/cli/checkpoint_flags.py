"""What tools/convert_checkpoint.py and tools/inspect_checkpoint.py share."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from mmfocalnet.checkpoints.metadata import INVISIBLE
from mmfocalnet.conversion.convert import Inspection, inspect


def add_source_flags(parser: ArgumentParser) -> None:
    """Add the checkpoint to read and what the user may know better than it."""
    parser.add_argument(
        'source', help='path, http(s) URL or Hugging Face id such as microsoft/focalnet-tiny'
    )
    parser.add_argument(
        '--prefix', help="what stands before the network's keys, where the file holds several"
    )
    parser.add_argument(
        '--use-postln',
        action=BooleanOptionalAction,
        help='whether its blocks are post-norm, where the file does not tell',
    )
    parser.add_argument(
        '--normalize-modulator',
        action=BooleanOptionalAction,
        help='whether its modulator is normalised, where the file does not tell',
    )


def inspect_source(args: Namespace) -> Inspection:
    """Inspect the checkpoint that the flags of `add_source_flags` name.

    Raises:
        CheckpointError: If the file cannot be read or holds no FocalNet.
    """
    given = {key: getattr(args, key) for key in INVISIBLE if getattr(args, key) is not None}
    return inspect(args.source, args.prefix, given)
