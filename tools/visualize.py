"""Draw the focal modulation of a FocalNet: python tools/visualize.py IMAGE CONFIG [CHECKPOINT]"""

import argparse
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, integer_flag
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import check_folder, short_stem
from mmfocalnet.released import DETECTORS

KINDS = ('gates', 'modulator', 'kernels', 'erf')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Draw the gates, modulator, kernels and receptive field of a FocalNet'
    )
    parser.add_argument('image', help='image file, such as JPEG or PNG')
    parser.add_argument(
        'config', help='config file, or without a checkpoint a name such as dino-focalnet-l'
    )
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of the model or of its backbone')
    parser.add_argument(
        '--what', choices=[*KINDS, 'all'], default='all', help='what to draw (default: all)'
    )
    parser.add_argument(
        '--stage',
        type=int,
        default=-1,
        help='index of the stage; negative: counted from the end (default: -1)',
    )
    parser.add_argument(
        '--block',
        type=int,
        default=-1,
        help='index of the block in the stage, likewise (default: -1)',
    )
    parser.add_argument(
        '--pretrained-window',
        type=integer_flag(1),
        metavar='K',
        help='crop expanded kernels to their pretraining size, K x K at the first focal '
        'level (default: not cropped)',
    )
    parser.add_argument('--out', metavar='DIR', help='output folder (default: WORK_DIR/maps)')
    parser.add_argument('--device', default='cpu', help='such as cuda:0 (default: cpu)')
    add_cfg_options(parser)
    args = parser.parse_intermixed_args()  # the checkpoint may come after flags
    # Flags of the tools that start runs, which load_config reads.
    vars(args).update(work_dir=None, launcher='none', local_rank=0)
    return args


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.cli.config_flags import load_config
from mmfocalnet.inference import read_image
from mmfocalnet.inference.predictor import find_released, move_to
from mmfocalnet.models import load_pretrained
from mmfocalnet.models.focalnet_arguments import pretrained_options
from mmfocalnet.visualization import (
    draw_gates,
    draw_kernels,
    draw_modulator,
    draw_receptive_field,
    find_block,
    find_focalnet,
    level_kernels,
    modulation_maps,
    prepare_image,
    receptive_field,
    save_figure,
)


def build_backbone(cfg, args):
    """Build the config's backbone with the weights of the checkpoint or of its init_cfg."""
    if 'backbone' not in cfg.model:
        raise ConfigError(f'{args.config} has no model.backbone: specify a config that has one.')
    settings = cfg.model.backbone.copy()
    init_cfg = settings.pop('init_cfg', None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        net = find_focalnet(MODELS.build(settings))
    channels = net.patch_embed.proj.in_channels
    if channels != 3:
        raise ConfigError(
            f'{args.config} has in_chans={channels}, expected 3, the channels of an image: '
            'specify a config with in_chans=3.'
        )
    net.init_weights()
    options = pretrained_options(init_cfg) if init_cfg else {}
    if args.checkpoint:
        load_pretrained(net, args.checkpoint)
    elif options and Path(options['checkpoint']).is_file():
        load_pretrained(net, **options)
    else:
        print_log('The weights are random, as no checkpoint was specified.', logger='current')
    return net


def choose_kinds(what, net, place):
    if what != 'all':
        return (what,)
    if level_kernels(net, *place):
        return KINDS
    print_log('Kernels are not drawn, as the block has no focal levels.', logger='current')
    return tuple(kind for kind in KINDS if kind != 'kernels')


def draw(kind, net, place, window, image, pixels):
    """Return a figure and the part of its file name after the kind."""
    stage, block = place
    if kind == 'erf':
        # The padding is cut off, so that the centre is the image's.
        pixels = pixels[None, :, : image.shape[0], : image.shape[1]]
        return draw_receptive_field(image, receptive_field(net, pixels, stage)), f'stage{stage}'
    suffix = f'stage{stage}_block{block}'
    if kind == 'kernels':
        title = f'Kernels, stage {stage}, block {block}'
        if window is not None:
            title += f', before expansion from window {window}'
            suffix += f'_window{window}'
        return draw_kernels(level_kernels(net, *place, window), title), suffix
    draw_map = draw_gates if kind == 'gates' else draw_modulator
    return draw_map(image, modulation_maps(net, pixels, *place)), suffix


@report_errors
def main():
    args = parse_args()
    if args.config in DETECTORS and args.checkpoint is None:
        config, args.checkpoint = find_released(args.config)
        args.config = str(config)
    cfg = load_config(args)
    out = Path(args.out or Path(cfg.work_dir) / 'maps')
    check_folder('--out', out)
    image = read_image(args.image)
    net = build_backbone(cfg, args)
    move_to(net, args.device)
    place = find_block(net, args.stage, args.block)
    resized, pixels = prepare_image(image, cfg)
    pixels = pixels.to(args.device)
    for kind in choose_kinds(args.what, net, place):
        figure, suffix = draw(kind, net, place, args.pretrained_window, resized, pixels)
        stem = '' if kind == 'kernels' else f'{short_stem(Path(args.image))}_'
        file = out / f'{stem}{kind}_{suffix}.png'
        save_figure(figure, file)
        print_lines(f'Saved: {file}')


if __name__ == '__main__':
    main()
