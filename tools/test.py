"""Test a model: python tools/test.py configs/mask_rcnn/focalnet_t_1x.py CHECKPOINT"""

import argparse
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.cli.flags import add_common_flags
from mmfocalnet.errors import UserError
from mmfocalnet.files import check_file, check_folder


def parse_args():
    parser = argparse.ArgumentParser(description='Test (and evaluate) a model')
    add_common_flags(parser)
    parser.add_argument('checkpoint', help='checkpoint file of the model')
    parser.add_argument('--out', metavar='FILE.pkl', help='file for the predictions')
    parser.add_argument('--show', action='store_true', help='show each prediction in a window')
    parser.add_argument(
        '--show-dir', help='folder for drawn predictions; for detectors, in WORK_DIR/TIMESTAMP'
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds that --show shows each image (default: 2)',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmengine.evaluator import DumpResults

from mmfocalnet.checkpoints import cached_reads
from mmfocalnet.cli.config_flags import load_config, use_drawing, use_tta
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.cli.runner import build_runner, test
from mmfocalnet.cli.strategy_checks import drop_strategy
from mmfocalnet.datasets.data_checks import check_data
from mmfocalnet.models.weight_checks import check_fits


def dump_metric(path, scope):
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults  # packs masks, which fill a disk otherwise

        return DumpDetResults(out_file_path=path)
    return DumpResults(out_file_path=path)


@report_errors
def main():
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out {args.out} must end in .pkl: predictions are written as a pickle.')
    cfg = load_config(args)
    check_folder('--work-dir', cfg.work_dir)
    if args.out:
        check_file('--out', args.out)
    cfg.load_from = args.checkpoint
    drop_strategy(cfg)
    if args.show or args.show_dir:
        use_drawing(cfg, args)
    if args.tta:
        use_tta(cfg)
    check_data(cfg, ('test',))
    with cached_reads():
        load_initial_checkpoint(cfg)
        runner = build_runner(cfg)
        check_fits(runner.model, cfg.load_from)
        if args.out:
            runner.test_evaluator.metrics.append(dump_metric(args.out, cfg.default_scope))
        test(cfg, runner)


if __name__ == '__main__':
    main()
