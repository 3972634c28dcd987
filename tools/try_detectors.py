"""Try FocalNet in every family of mmdet and mmseg: python tools/try_detectors.py mmdet mmseg"""

import argparse
import logging
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.cli.flags import integer_flag


def parse_args():
    parser = argparse.ArgumentParser(
        description='Replace the backbone of one config of each family by a narrow FocalNet, and '
        'compute a loss, gradients and a prediction on random images'
    )
    parser.add_argument('package', nargs='+', choices=['mmdet', 'mmseg', 'mmpretrain'])
    parser.add_argument('--build', action='store_true', help='only build the models')
    parser.add_argument('--only', nargs='+', metavar='FAMILY', help='names of config folders')
    parser.add_argument('--jobs', type=integer_flag(1), default=os.cpu_count(), metavar='N')
    parser.add_argument(
        '--out', metavar='FILE.md', help='replace the table of each package in this file'
    )
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

import torch

from mmfocalnet.cli.runner import check_model
from mmfocalnet.config_writing.families import find_families, try_family
from mmfocalnet.text import escape

LIMIT = 600  # seconds per family


@report_errors
def main():
    args = parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # one line per family, as it is tried
    out = args.out and Path(args.out).absolute()
    os.environ.update(HF_HUB_OFFLINE='1')  # no repeated requests for language models
    failed = False
    for package in args.package:
        families = find_families(package)
        # Some configs name others by their path in a checkout of the package.
        os.chdir(Path(find_spec(package).submodule_search_locations[0], '.mim'))
        chosen = args.only or families
        jobs = [(f, files, args.build) for f, files in families.items() if f in chosen]
        results = []
        # New processes after a few models, because allocated memory grows.
        with multiprocessing.get_context('spawn').Pool(args.jobs, maxtasksperchild=8) as pool:
            for result in pool.imap(run, jobs):
                print_lines(f'{package} {result.family}: {result.state} {result.reason}'.strip())
                results.append(result)
        count = Counter(result.state for result in results)
        print_lines(f'{package}: {count["works"]} of {len(results) - count["not exchangeable"]}')
        failed = failed or count['fails'] > 0
        if out:
            replace_table(out, package, results)
    if failed:
        raise SystemExit(1)


def run(job):
    family, files, build_only = job
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(LIMIT)
    return try_family(family, files, check_model, build_only)


def time_out(*_):
    raise TimeoutError(f'not finished after {LIMIT} s')


def replace_table(path, package, results):
    """Replace the table that follows the heading ``## PACKAGE``."""
    rows = [f'| {r.family} | {r.config} | {r.state} | {cell(r.reason)} |' for r in results]
    table = '\n'.join(['| family | config | state | reason |', '|---|---|---|---|', *rows])
    old = rf'(## {package}\n.*?\n)\|.*?\n\n'
    new = re.sub(old, lambda found: f'{found[1]}{table}\n\n', path.read_text(), flags=re.DOTALL)
    path.write_text(new)


def cell(reason):
    """The start of an error, without the folder of the installed packages."""
    site = f'{Path(torch.__file__).parents[1]}/'
    return escape(reason.replace(site, '').replace('|', '/'), 150)


if __name__ == '__main__':
    main()
