"""Write the generated sample sets: python tools/make_shapes.py [--crops] [--out data/shapes]."""

import argparse
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.errors import UserError
from mmfocalnet.files import check_folder


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--crops', action='store_true', help='crops of single shapes in a folder per class'
    )
    parser.add_argument(
        '--out', help='output folder (default: data/shapes; with --crops data/shapes_crops)'
    )
    parser.add_argument(
        '--train',
        type=int,
        help='training images, from which --crops cuts (default: 600; with --crops 1200)',
    )
    parser.add_argument('--val', type=int, help='validation images (default: 80)')
    parser.add_argument(
        '--size', type=int, help='side of the images in pixels (default: 160; with --crops 64)'
    )
    parser.add_argument('--seed', type=int, help='random seed (default: 0; with --crops 1)')
    args = parser.parse_args()
    args.out = args.out or ('data/shapes_crops' if args.crops else 'data/shapes')
    return args


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.datasets import make_shape_crops, make_shapes
from mmfocalnet.datasets.shapes_files import STAMP


@report_errors
def main():
    args = parse_args()
    check_folder('--out', args.out)
    make = make_shape_crops if args.crops else make_shapes
    given = dict(num_train=args.train, num_val=args.val, size=args.size, seed=args.seed)
    try:
        out = make(args.out, **{key: value for key, value in given.items() if value is not None})
    except OSError as error:
        raise UserError(
            f'--out {args.out} cannot be written ({error.strerror}): specify another folder.'
        ) from error
    print_lines(f'{out}: {(out / STAMP).read_text().strip()}')


if __name__ == '__main__':
    main()
