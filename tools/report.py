"""Put a training on one HTML page: python tools/report.py WORK_DIR"""

import argparse
from pathlib import Path

from mmfocalnet.launch import one_sentence_errors
from mmfocalnet.visualization.report import write_report


def count(text):
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'{number} is negative')
    return number


def parse_args():
    parser = argparse.ArgumentParser(
        description='Put the curves, predictions, config and environment of a training, '
        'finished or not, into one HTML file that needs no other file.'
    )
    parser.add_argument('work_dir', type=Path, help='work dir of the training')
    parser.add_argument('--out', type=Path, metavar='FILE', help='default: WORK_DIR/report.html')
    parser.add_argument(
        '--images',
        type=count,
        default=16,
        metavar='N',
        help='predict N held-out images with the newest checkpoint; 0: no gallery (default: 16)',
    )
    return parser.parse_args()


@one_sentence_errors
def main():
    args = parse_args()
    out = args.out or args.work_dir / 'report.html'
    for sentence in write_report(args.work_dir, out, args.images):
        print(sentence)
    print(f'The report: {out}')


if __name__ == '__main__':
    main()
