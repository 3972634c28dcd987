"""Train a model: python tools/train.py configs/mask_rcnn/focalnet_t_1x.py"""

import argparse
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.cli.flags import add_common_flags
from mmfocalnet.files import check_folder


def parse_args():
    parser = argparse.ArgumentParser(description='Train a detector, segmentor or classifier')
    add_common_flags(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='continue from a checkpoint: PATH, or by default the newest one of the work dir',
    )
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.checkpoints import cached_reads
from mmfocalnet.cli.config_flags import load_config, scale_lr, use_amp
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.cli.runner import check_model, train
from mmfocalnet.cli.strategy_checks import check_strategy
from mmfocalnet.datasets.data_checks import check_data


@report_errors
def main():
    args = parse_args()
    cfg = load_config(args)
    check_folder('--work-dir', cfg.work_dir)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        scale_lr(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    check_strategy(cfg)
    check_data(cfg, ('train', 'val'))
    with cached_reads():
        load_initial_checkpoint(cfg)
        check_model(cfg)
        train(cfg)


if __name__ == '__main__':
    main()
