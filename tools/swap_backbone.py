"""FocalNet in any config: python tools/swap_backbone.py mmdet::atss/atss_r50_fpn_1x_coco.py"""

import argparse
import logging
import shlex
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.archs import CHECKPOINTS
from mmfocalnet.cli.error_handling import check_usage, print_error, print_lines, report_errors
from mmfocalnet.files import check_new_config, replacing


def parse_args():
    parser = argparse.ArgumentParser(
        description='Write a config with FocalNet as the backbone of another config'
    )
    parser.add_argument(
        'config', help='path of a config, or mmdet::..., mmseg::... or mmpretrain::...'
    )
    parser.add_argument('--arch', choices=CHECKPOINTS, default='tiny_lrf')
    parser.add_argument(
        '--out', metavar='NEW.py', help='file to write (default: CONFIG_NAME_focalnet_ARCH.py)'
    )
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.config_writing.base_config import base_reference, read_base
from mmfocalnet.config_writing.child_config import child_config
from mmfocalnet.config_writing.swap_backbone import pretrained_backbone, swap_backbone
from mmfocalnet.config_writing.trial import build_model, try_model


@report_errors
def main():
    args = parse_args()
    out = args.out or f'{Path(args.config.rpartition("::")[2]).stem}_focalnet_{args.arch}.py'
    check_new_config('--out', out)
    cfg = read_base(args.config)
    swap = swap_backbone(cfg, **pretrained_backbone(args.arch))
    text = child_config(base_reference(args.config, out), cfg, swap.cfg, swap.notes)
    failure = failed_trial(swap.cfg)
    with replacing(Path(out)) as part:
        part.write_text(text, encoding='utf-8')
    print(text)
    for remark in swap.remarks:
        print_error(f'warning: {remark}')
    if failure:
        print_error(f'warning: {out} was written, but its model fails on random images: {failure}')
        raise SystemExit(1)
    print_lines(
        f'{out}: the model computes losses, gradients and predictions on random images.',
        f'Train it: python tools/train.py {shlex.quote(out)}',
    )


def failed_trial(cfg):
    """Why the model cannot be trained on random images; None if it can."""
    logging.disable(logging.WARNING)  # MMEngine logs the initialization of each weight
    try:
        try_model(cfg, build_model(cfg))
    except Exception as error:
        return f'{type(error).__name__}: {error}'


if __name__ == '__main__':
    main()
