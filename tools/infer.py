"""Predict images and videos: python tools/infer.py photos/ dino-focalnet-l --out results"""

import argparse
import os
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_error, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, integer_flag
from mmfocalnet.errors import UserError
from mmfocalnet.files import check_folder, make_folder
from mmfocalnet.released import DETECTORS


def parse_args():
    parser = argparse.ArgumentParser(
        description='Predict images and videos with a trained model',
        usage='%(prog)s IMAGES ... {CONFIG CHECKPOINT | NAME | EXPORTED} --out DIR [options]',
    )
    parser.add_argument(
        'images', nargs='+', metavar='IMAGES', help='images, videos, folders or globs in quotes'
    )
    parser.add_argument(
        'model',
        metavar='CONFIG CHECKPOINT',
        help='config file and the checkpoint trained with it, or instead of both the NAME of a '
        f'released model ({", ".join(DETECTORS)}) or the file EXPORTED by tools/export.py (.onnx '
        'or .xml)',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder to write to')
    parser.add_argument('--device', default='cpu', help='such as cuda:0 (default: cpu)')
    parser.add_argument(
        '--score-thr',
        type=score,
        default=0.3,
        help='minimum score of boxes that are drawn and written (default: 0.3)',
    )
    parser.add_argument('--batch-size', type=integer_flag(1), default=1, help='default: 1')
    add_cfg_options(parser)
    return parser.parse_args()


def score(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number from 0 to 1')
    return value


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.deployment import SUFFIXES
from mmfocalnet.inference import load_predictor
from mmfocalnet.inference.file_predictor import FilePredictor
from mmfocalnet.inference.predictor import find_released
from mmfocalnet.inference.sources import find_sources


def split_model(images, last):
    """Split the arguments into images and the arguments of `load_predictor`."""
    if last.endswith(tuple(SUFFIXES.values())) and not images[-1].endswith('.py'):
        return images, [last]
    is_file = '.' in last or '/' in last or os.path.exists(last)
    if (last in DETECTORS and images[-1].endswith('.py')) or (is_file and len(images) > 1):
        return images[:-1], [images[-1], last]
    find_released(last)  # raises an error unless it is a name
    return images, [last]


def check_output_folder(out, sources):
    """Raise an error if outputs could overwrite sources."""
    written = [os.path.realpath(out / name) for name in ('vis', 'pred', 'panoptic')]
    for source in sources:
        if os.path.dirname(os.path.realpath(source.path)) in written:
            raise UserError(
                f'{source.path} is in a result folder of --out {out}, which could overwrite it. '
                'Choose another --out.'
            )


def report(results, written, problems):
    print_lines(f'{len(results.images)} predictions')
    if written:
        print_lines(f'Written: {", ".join(map(str, written))}', describe_ids(results))
    for problem in problems:
        print_error(problem)


def describe_ids(results):
    if results.task == 'semantic':
        return 'Label maps contain class indices from 0, see categories.json.'
    if results.ids_from:
        return f'category_id is that of {results.ids_from}.'
    return 'category_id starts at 1 (no annotation file), see categories.json.'


@report_errors
def main():
    args = parse_args()
    images, model = split_model(args.images, args.model)
    sources, problems = find_sources(images)
    if not sources:
        raise UserError(' '.join(problems))
    check_output_folder(args.out, sources)
    check_folder('--out', args.out)
    predictor = load_predictor(*model, device=args.device, cfg_options=args.cfg_options)
    make_folder('--out', args.out)
    predict = FilePredictor(predictor, args.out, args.score_thr, args.batch_size)
    written = predict(sources)
    problems += predict.problems
    report(predict.results, written, problems)
    if predict.interrupted:
        sys.exit(130)  # as shells report Ctrl-C
    if not predict.results.images:
        sys.exit(2)
    sys.exit(1 if problems else 0)


if __name__ == '__main__':
    main()
