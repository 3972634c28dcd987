"""Convert a FocalNet checkpoint: python tools/convert_checkpoint.py SRC DST --to timm"""

import argparse

from mmfocalnet.checkpoints.command_line import add_source_flags, inspect_source
from mmfocalnet.checkpoints.convert import DESTINATIONS, Changes, convert
from mmfocalnet.launch import one_sentence_errors


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
        help='kernel size at the first focal level, of all stages or of each',
    )
    parser.add_argument('--levels', type=int, metavar='N', help='focal levels of all stages')
    parser.add_argument(
        '--keep-function',
        action='store_true',
        help='add levels so that the outputs stay the same; these levels do not train',
    )
    parser.add_argument(
        '--allow-nonfinite', action='store_true', help='take NaN and infinite weights as they are'
    )
    return parser.parse_args()


def numbers(text):
    return tuple(int(number) for number in text.split(','))


@one_sentence_errors
def main():
    args = parse_args()
    found = inspect_source(args)
    changes = Changes(args.windows, args.levels, args.keep_function, args.allow_nonfinite)
    done = convert(found, args.destination, args.to, changes)
    print(f'{args.source}: {found.network}')
    for name, origin in found.architecture.origins.items():
        print(f'{name}={found.architecture.settings[name]} ({origin})')
    print(f'{args.destination}: {args.to}; {done}')


if __name__ == '__main__':
    main()
