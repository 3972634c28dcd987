"""Write an HTML report of a training run: python tools/report.py WORK_DIR"""

import argparse
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_error, print_lines, report_errors
from mmfocalnet.cli.flags import integer_flag
from mmfocalnet.files import check_file


def parse_args():
    parser = argparse.ArgumentParser(
        description='Write the curves, predictions, config and environment of a training run, '
        'finished or not, into one HTML file that needs no other file.'
    )
    parser.add_argument('work_dir', type=Path, help='work dir of the training run')
    parser.add_argument('--out', type=Path, metavar='FILE', help='default: WORK_DIR/report.html')
    parser.add_argument(
        '--images',
        type=integer_flag(0),
        default=16,
        metavar='N',
        help='predict N held-out images with the newest checkpoint; 0: none (default: 16)',
    )
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.visualization.report import write_report


@report_errors
def main():
    args = parse_args()
    out = args.out or args.work_dir / 'report.html'
    check_file('--out', out)
    missing = write_report(args.work_dir, out, args.images)
    print_lines(*missing.yet, f'Report: {out}')
    for message in missing.skipped:
        print_error(message)
    sys.exit(1 if missing.skipped else 0)


if __name__ == '__main__':
    main()
