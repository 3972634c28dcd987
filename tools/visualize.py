"""Draw what a FocalNet looks at: python tools/visualize.py IMAGE CONFIG [CHECKPOINT]"""

import argparse
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the imports below last

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.checkpoints import load_pretrained
from mmfocalnet.cli import add_cfg_options, integer, load_config, print_lines, report_errors
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import check_folder, short_stem
from mmfocalnet.inference import read_image
from mmfocalnet.inference.predictor import move_to
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

KINDS = ('gates', 'modulator', 'kernels', 'erf')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Draw the gates, modulator, kernels and receptive field of a FocalNet'
    )
    parser.add_argument('image', help='a picture, such as JPEG or PNG')
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument(
        'checkpoint', nargs='?', help='checkpoint of the model or of its backbone alone'
    )
    parser.add_argument('--what', choices=[*KINDS, 'all'], default='all')
    parser.add_argument(
        '--stage', type=int, default=-1, help='from 0; negative from the end (default: the last)'
    )
    parser.add_argument(
        '--block', type=int, default=-1, help='of the stage, likewise (default: the last)'
    )
    parser.add_argument(
        '--pretrained-window',
        type=integer(1),
        metavar='K',
        help='draw the kernels as they were before expansion, K by K at the first focal level '
        '(default: as they are)',
    )
    parser.add_argument('--out', metavar='DIR', help='default: maps in the work dir of the config')
    parser.add_argument('--device', default='cpu', help='such as cuda:0 (default: cpu)')
    add_cfg_options(parser)
    args = parser.parse_intermixed_args()  # the checkpoint may come after flags
    # What the tools that start runs let their users choose.
    vars(args).update(work_dir=None, launcher='none', local_rank=0)
    return args


def build_backbone(cfg, args):
    """The config's backbone with weights: all that runs here."""
    if 'backbone' not in cfg.model:
        raise ConfigError(f'The model of {args.config} has no backbone to look into.')
    settings = cfg.model.backbone.copy()
    init_cfg = settings.pop('init_cfg', None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        net = find_focalnet(MODELS.build(settings))
    channels = net.patch_embed.proj.in_channels
    if channels != 3:
        raise ConfigError(
            f'{args.config} has in_chans={channels}, and a picture has 3: give a config of 3.'
        )
    net.init_weights()
    options = pretrained_options(init_cfg) if init_cfg else {}
    if args.checkpoint:
        load_pretrained(net, args.checkpoint)
    elif options and Path(options['checkpoint']).is_file():
        load_pretrained(net, **options)
    else:
        print_log('No CHECKPOINT given: the weights are random.', logger='current')
    return net


def kinds(what, net, place):
    if what != 'all':
        return (what,)
    if level_kernels(net, *place):
        return KINDS
    print_log('There are no kernels to draw: this block has no focal levels.', logger='current')
    return tuple(kind for kind in KINDS if kind != 'kernels')


def draw(what, net, place, shown, pixels):
    """The figure of one kind."""
    if what == 'erf':
        # Of the picture's own centre, so without the padding.
        inside = pixels[None, :, : shown.shape[0], : shown.shape[1]]
        return draw_receptive_field(shown, receptive_field(net, inside, place[0]))
    drawer = draw_gates if what == 'gates' else draw_modulator
    return drawer(shown, modulation_maps(net, pixels, *place))


def draw_kernels_of(net, place, window):
    kernels = level_kernels(net, *place, window)
    before = '' if window is None else f', before expansion from window {window}'
    return draw_kernels(kernels, f'Kernels, stage {place[0]}, block {place[1]}{before}')


def file_name(what, args, place):
    stage, block = place
    where = f'stage{stage}' if what == 'erf' else f'stage{stage}_block{block}'
    if what != 'kernels':
        return f'{short_stem(Path(args.image))}_{what}_{where}.png'
    window = args.pretrained_window
    return f'{what}_{where}.png' if window is None else f'{what}_{where}_window{window}.png'


@report_errors
def main():
    args = parse_args()
    cfg = load_config(args)
    out = Path(args.out or Path(cfg.work_dir) / 'maps')
    check_folder('--out', out)
    image = read_image(args.image)
    net = build_backbone(cfg, args)
    move_to(net, args.device)
    place = find_block(net, args.stage, args.block)
    shown, pixels = prepare_image(image, cfg)
    for what in kinds(args.what, net, place):
        if what == 'kernels':
            figure = draw_kernels_of(net, place, args.pretrained_window)
        else:
            figure = draw(what, net, place, shown, pixels.to(args.device))
        file = out / file_name(what, args, place)
        save_figure(figure, file)
        print_lines(f'Drawn: {file}')


if __name__ == '__main__':
    main()
