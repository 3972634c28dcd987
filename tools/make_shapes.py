"""Write the generated sample set: python tools/make_shapes.py [--out data/shapes]."""

import argparse
import sys
from collections.abc import Sequence

from mmfocalnet.datasets.shapes import make_shapes


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', default='data/shapes', help='folder to make')
    parser.add_argument('--train', type=int, default=600, help='training images')
    parser.add_argument('--val', type=int, default=80, help='validation images')
    parser.add_argument('--size', type=int, default=160, help='side of the images, in pixels')
    parser.add_argument('--seed', type=int, default=0, help='seed of all drawing')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        out = make_shapes(args.out, args.train, args.val, args.size, args.seed)
    except (ValueError, OSError) as error:
        print(f'make_shapes: {error}', file=sys.stderr)
        return 2
    print(f'{out}: {args.train} training and {args.val} validation images, side {args.size}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
