"""Predict pictures and videos: python tools/infer.py photos/ CONFIG CHECKPOINT --out results"""

import argparse
import os
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the imports below last

from mmfocalnet.cli import add_cfg_options, integer, print_error, print_lines, report_errors
from mmfocalnet.errors import UserError
from mmfocalnet.files import make_folder
from mmfocalnet.inference import load_predictor
from mmfocalnet.inference.run import Run
from mmfocalnet.inference.sources import find_sources


def score(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is no score: give a number from 0 to 1')
    return value


def parse_args():
    parser = argparse.ArgumentParser(description='Predict pictures and videos with a trained model')
    parser.add_argument(
        'images', nargs='+', metavar='IMAGES', help='pictures, videos, folders or globs in quotes'
    )
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help='checkpoint that was trained with it')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write to')
    parser.add_argument('--device', default='cpu', help='such as cuda:0 (default: cpu)')
    parser.add_argument(
        '--score-thr',
        type=score,
        default=0.3,
        help='boxes of lower scores are neither drawn nor written (default: 0.3)',
    )
    parser.add_argument('--batch-size', type=integer(1), default=1, help='default: 1')
    add_cfg_options(parser)
    return parser.parse_args()


def keep_sources(out, sources):
    """Refuse to write where the sources are."""
    written = [os.path.realpath(out / name) for name in ('vis', 'pred', 'panoptic')]
    for source in sources:
        if os.path.dirname(os.path.realpath(source.path)) in written:
            raise UserError(
                f'{source.path} lies where --out {out} has its results, which could replace it: '
                'choose another --out.'
            )


def report(run, written):
    print_lines(f'{len(run.results.images)} predictions')
    if written:
        print_lines(f'Written: {", ".join(map(str, written))}', meaning_of_ids(run.results))
    for problem in run.problems:
        print_error(problem)


def meaning_of_ids(results):
    if results.task == 'semantic':
        return 'The values of the label maps count the classes from 0: see categories.json.'
    if results.ids_from:
        return f'category_id is that of {results.ids_from}.'
    return 'category_id counts the classes from 1 (no annotation file): see categories.json.'


@report_errors
def main():
    args = parse_args()
    sources, problems = find_sources(args.images)
    if not sources:
        raise UserError(' '.join(problems))
    keep_sources(args.out, sources)
    make_folder('--out', args.out)
    predictor = load_predictor(args.config, args.checkpoint, args.device, args.cfg_options)
    run = Run(predictor, args.out, args.score_thr, args.batch_size)
    run.problems += problems
    report(run, run(sources))
    if run.interrupted:
        sys.exit(130)  # what shells say of Ctrl-C
    if not run.results.images:
        sys.exit(2)
    sys.exit(1 if run.problems else 0)


if __name__ == '__main__':
    main()
