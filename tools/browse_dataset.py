"""Draw augmented training samples: python tools/browse_dataset.py CONFIG"""

import argparse
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, integer_flag
from mmfocalnet.files import check_folder


def parse_args():
    parser = argparse.ArgumentParser(
        description='Draw samples of a dataset with their labels, after augmentation and before '
        'normalisation.'
    )
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument(
        '--split', choices=['train', 'val', 'test'], default='train', help='default: train'
    )
    parser.add_argument(
        '--output-dir',
        '--out',
        type=Path,
        metavar='DIR',
        help='folder for the images (default: work_dirs/browse_dataset/CONFIG_NAME)',
    )
    parser.add_argument(
        '--number',
        type=integer_flag(1),
        default=20,
        metavar='N',
        help='number of samples (default: 20)',
    )
    parser.add_argument(
        '--seed',
        type=integer_flag(0),
        default=0,
        help='seed of sampling and augmentation (default: 0)',
    )
    parser.add_argument(
        '--not-show', action='store_true', help='do not open windows (default without a display)'
    )
    parser.add_argument(
        '--show-interval', type=float, default=2, metavar='S', help='seconds per image (default: 2)'
    )
    add_cfg_options(parser)
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.config import override, read_config
from mmfocalnet.datasets.data_checks import check_paths
from mmfocalnet.visualization.browse import draw_samples


@report_errors
def main():
    args = parse_args()
    cfg = read_config(args.config)
    override(cfg, args.cfg_options)
    import_datasets(cfg.get('default_scope'))
    check_paths(cfg, f'{args.split}_dataloader')
    out = args.output_dir or Path('work_dirs/browse_dataset', Path(args.config).stem)
    check_folder('--output-dir', out)
    interval = None if args.not_show else args.show_interval
    files = list(draw_samples(cfg, args.split, out, args.number, args.seed, interval))
    print_lines(f'{len(files)} images: {out}')


if __name__ == '__main__':
    main()
