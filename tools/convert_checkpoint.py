"""Convert a FocalNet checkpoint: python tools/convert_checkpoint.py SRC DST --to timm"""

import argparse
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.checkpoint_flags import add_source_flags, inspect_source
from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.cli.flags import integer_flag
from mmfocalnet.conversion import DESTINATIONS


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_source_flags(parser)
    parser.add_argument('destination', help='file to write; a folder for transformers')
    parser.add_argument('--to', required=True, choices=DESTINATIONS)
    parser.add_argument(
        '--windows',
        type=numbers,
        default=(),
        metavar='N[,N,N,N]',
        help='kernel size at the first focal level: one for all stages, or one per stage',
    )
    parser.add_argument(
        '--levels',
        type=integer_flag(1),
        metavar='N',
        help='number of focal levels of all stages; can only grow',
    )
    parser.add_argument(
        '--keep-function',
        action='store_true',
        help='add levels that keep the outputs unchanged; for inference only',
    )
    parser.add_argument(
        '--keep-classes',
        action='store_true',
        help='keep the 91 logits of a FocalNet-DINO detector (default: the 80 classes of COCO)',
    )
    parser.add_argument(
        '--allow-nonfinite', action='store_true', help='convert NaN and infinite weights'
    )
    return parser.parse_args()


def numbers(text):
    return tuple(map(integer_flag(1), text.split(',')))


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.conversion.convert import Changes, convert


@report_errors
def main():
    args = parse_args()
    found = inspect_source(args)
    changes = Changes(
        args.windows, args.levels, args.keep_function, args.keep_classes, args.allow_nonfinite
    )
    report = convert(found, args.destination, args.to, changes)
    settings, origins = found.architecture.settings, found.architecture.origins
    print_lines(
        f'{args.source}: {found.network}',
        *(f'{name}={settings[name]} ({origin})' for name, origin in origins.items()),
        f'{args.destination}: {args.to}; {report}',
    )


if __name__ == '__main__':
    main()
