"""Check that this machine computes FocalNet right, and how fast: python tools/check_gpu.py

It needs no data and no network. Results: OUT/gpu.md and OUT/gpu.json. The exit code is 1 if a check
failed, or if no time was left for a check of the results.
"""

import argparse
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.errors import UserError
from mmfocalnet.files import check_folder, make_folder


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--quick', action='store_true', help='the main checks, in two minutes')
    sizes.add_argument('--full', action='store_true', help='all checks, in six minutes (default)')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/check_gpu'),
        metavar='DIR',
        help='folder for the results (default: work_dirs/check_gpu)',
    )
    parser.add_argument(
        '--device', choices=['cuda', 'cpu'], default='cuda', help='cpu: smaller sizes'
    )
    parser.set_defaults(threads=None)  # as many as PyTorch chooses
    args = parser.parse_args()
    try:
        check_folder('--out', args.out)
    except UserError as error:
        parser.error(str(error))
    return args


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from benchmarking import measuring
from gpu_checks import demo_run, environment, families, operators, speed, stand_ins
from gpu_checks.report import Report

# The sections in order, and the share of the time after which no check of a section starts.
SECTIONS = (
    ('environment', 0.1, environment.run),
    ('operators', 0.28, operators.run),
    ('stand-ins for ops of mmcv', 0.32, stand_ins.run),
    ('backbones', 0.4, operators.run_backbones),
    ('families', 0.55, families.run),
    ('demo run', 0.65, demo_run.run),
    ('speed', 1.0, speed.run),
)


@report_errors
def main():
    args = parse_args()
    measuring.prepare(args)
    make_folder('--out', args.out)
    # End as by an exception, so that the training runs that this tool starts end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report = Report(args)
    report.write()
    for name, share, run in SECTIONS:
        report.run_section(name, share, run)
    report.finish()
    if not report.is_good():
        sys.exit(1)


if __name__ == '__main__':
    main()
