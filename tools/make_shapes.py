"""Write the generated sample sets: python tools/make_shapes.py [--crops] [--out data/shapes]."""

import argparse
import sys
from collections.abc import Sequence

from mmfocalnet.datasets import make_shape_crops, make_shapes
from mmfocalnet.datasets.shapes import STAMP


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--crops', action='store_true', help='single shapes in a folder per class, to classify'
    )
    parser.add_argument('--out', help='folder to make (data/shapes; of crops data/shapes_crops)')
    parser.add_argument('--train', type=int, help='training images, cut up for crops (600; 1200)')
    parser.add_argument('--val', type=int, help='validation images, likewise (80)')
    parser.add_argument('--size', type=int, help='side of the pictures, in pixels (160; 64)')
    parser.add_argument('--seed', type=int, help='seed of all drawing (0; 1)')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    make = make_shape_crops if args.crops else make_shapes
    given = dict(num_train=args.train, num_val=args.val, size=args.size, seed=args.seed)
    try:
        out = make(
            args.out or ('data/shapes_crops' if args.crops else 'data/shapes'),
            **{key: value for key, value in given.items() if value is not None},
        )
    except (ValueError, OSError) as error:
        print(f'make_shapes: {error}', file=sys.stderr)
        return 2
    print(f'{out}: {(out / STAMP).read_text().strip()}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
