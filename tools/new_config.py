"""A config for your own data: tools/new_config.py DATA --recipe configs/bccd/atss_focalnet.py"""

import argparse
import shlex
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.cli.flags import integer_flag
from mmfocalnet.files import check_new_config, replacing


def parse_args():
    parser = argparse.ArgumentParser(
        description='Write a config that trains a recipe on other data'
    )
    parser.add_argument(
        'data', help="folder in COCO's layout, or of images and label maps in ADE20K's layout"
    )
    parser.add_argument(
        '--recipe',
        required=True,
        metavar='CONFIG',
        help='path of a config, or mmdet::..., mmseg::...',
    )
    parser.add_argument('--out', default='my_config.py', help='file to write (my_config.py)')
    for split in ('train', 'val', 'test'):
        parser.add_argument(
            f'--{split}', metavar='FILE.json', help='annotation file, if its name does not show it'
        )
    parser.add_argument('--epochs', type=integer_flag(1), metavar='N')
    parser.add_argument(
        '--batch', type=integer_flag(1), metavar='B', help='images per process and iteration'
    )
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.config import read_config
from mmfocalnet.config_writing.base_config import base_reference, read_base
from mmfocalnet.config_writing.child_config import child_config
from mmfocalnet.config_writing.data_settings import label_kind
from mmfocalnet.config_writing.labels import read_labels
from mmfocalnet.config_writing.new_config import new_config
from mmfocalnet.datasets.data_checks import check_data


@report_errors
def main():
    args = parse_args()
    check_new_config('--out', args.out)
    recipe = read_base(args.recipe)
    files = {s: getattr(args, s) for s in ('train', 'val', 'test') if getattr(args, s)}
    labels = read_labels(Path(args.data), label_kind(recipe), files)
    cfg = new_config(recipe, labels, args.epochs, args.batch)
    text = child_config(
        base_reference(args.recipe, args.out), recipe, cfg, {}, variables=('data_root', 'metainfo')
    )
    with replacing(Path(args.out)) as part:
        part.write_text(text, encoding='utf-8')
        written = read_config(str(part))
        written._filename = args.out
        check_data(written, ('train', 'val'))
    counts = ', '.join(f'{split.count} for {name}' for name, split in labels.splits.items())
    width, height = labels.size
    print(text)
    print_lines(
        f'Labels: {labels.description}; classes: {", ".join(labels.classes)}',
        f'Images: {counts}; {width}x{height} pixels (median)',
        f'{args.out}: the files and annotations are correct. Look at the samples:',
        f'    python tools/browse_dataset.py {shlex.quote(args.out)}',
        'Train on one GPU or the CPU:',
        f'    python tools/train.py {shlex.quote(args.out)} --auto-scale-lr',
    )


if __name__ == '__main__':
    main()
