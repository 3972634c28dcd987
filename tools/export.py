"""Export a model: python tools/export.py CONFIG CHECKPOINT --format onnx --out model.onnx"""

import argparse
import json
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_error, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options, integer_flag
from mmfocalnet.deployment import SUFFIXES
from mmfocalnet.errors import UserError
from mmfocalnet.files import check_file
from mmfocalnet.released import DETECTORS

MIN_SIDE = 64  # as mmfocalnet.deployment.formats.MIN_SIDE, which imports PyTorch


def parse_args():
    parser = argparse.ArgumentParser(
        description='Export a model to ONNX, OpenVINO or torch.export, and check the file',
        usage='%(prog)s {CONFIG [CHECKPOINT] | NAME} --out FILE [options]',
    )
    parser.add_argument(
        'config',
        metavar='CONFIG',
        help=f'config file, or the NAME of a released detector: {", ".join(DETECTORS)}',
    )
    parser.add_argument(
        'checkpoint',
        nargs='?',
        metavar='CHECKPOINT',
        help='path, URL or name of a released model (default: random weights)',
    )
    parser.add_argument('--format', choices=list(SUFFIXES), default='onnx', help='default: onnx')
    parser.add_argument(
        '--out',
        type=Path,
        required=True,
        metavar='FILE',
        help='file to write, which ends with .onnx, .pt2 (torch-export) or .xml (openvino)',
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--size',
        nargs=2,
        type=integer_flag(MIN_SIDE, 2**15),
        metavar=('H', 'W'),
        help='height and width of the images (default: those of the test pipeline)',
    )
    sizes.add_argument('--dynamic', action='store_true', help='any batch, height and width')
    parser.add_argument(
        '--backbone-only', action='store_true', help='export the features of the backbone'
    )
    parser.add_argument('--fp16', action='store_true', help='the network in half precision')
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument(
        '--raw', action='store_true', help='the input is normalized: (B, 3, H, W), float32'
    )
    inputs.add_argument(
        '--dtype',
        choices=['uint8', 'float32'],
        default='uint8',
        help='type of the input (B, H, W, 3), BGR, 0 to 255 (default: uint8)',
    )
    parser.add_argument(
        '--no-grid-sample',
        dest='grid_sample',
        action='store_false',
        help='deformable attention without the operator GridSample',
    )
    parser.add_argument(
        '--image', metavar='FILE', help='image to check the file with (default: a random one)'
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    try:
        check_output(args)
    except UserError as error:
        parser.error(str(error))
    return args


def check_output(args):
    suffix = SUFFIXES[args.format]
    if args.out.suffix != suffix:
        raise UserError(
            f'--out {args.out} must be a name that ends with {suffix} for --format {args.format}.'
        )
    check_file('--out', args.out)
    if not args.out.absolute().parent.is_dir():
        raise UserError(f'--out {args.out} is in a folder that does not exist: create it.')
    description = args.out.with_suffix('.json')
    if description.exists() and described_file(description) != args.out.name:
        raise UserError(
            f'{description} exists and does not describe {args.out.name}: choose another --out, or '
            'remove it.'
        )
    weights = args.out.with_suffix('.bin')
    if args.format == 'openvino' and weights.exists() and not args.out.exists():
        raise UserError(
            f'{weights} exists, and --format openvino writes weights there: choose another --out, '
            'or remove it.'
        )


def described_file(description):
    """Name of the exported file that a JSON file describes; None for other files."""
    try:
        return json.loads(description.read_text(encoding='utf-8')).get('file')
    except (OSError, ValueError, AttributeError):
        return None


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.config import read_model_config
from mmfocalnet.deployment.description import find_resize
from mmfocalnet.deployment.export import Metadata, Options, export
from mmfocalnet.deployment.formats import check_requirements
from mmfocalnet.deployment.images import random_image
from mmfocalnet.deployment.source import backbone_graph, default_size, model_graph
from mmfocalnet.inference import read_image
from mmfocalnet.inference.predictor import find_released, load_predictor, random_predictor


def load_graph(args):
    """Build the graph.

    Returns:
        The graph and its metadata.
    """
    config, checkpoint = args.config, args.checkpoint
    if checkpoint is None and config in DETECTORS:
        config, checkpoint = find_released(config)
    if checkpoint is None:
        print_error('no CHECKPOINT: the weights are random.')
    if args.backbone_only:
        cfg = read_model_config(str(config), args.cfg_options)
        return backbone_graph(cfg, checkpoint, args.raw), Metadata(find_resize(cfg))
    if checkpoint is None:
        predictor = random_predictor(config, args.cfg_options)
    else:
        predictor = load_predictor(config, checkpoint, cfg_options=args.cfg_options)
    if (getattr(predictor.model, 'test_cfg', None) or {}).get('mode') == 'slide':
        print_error("test_cfg.mode='slide' is ignored: the file predicts complete images.")
    graph = model_graph(predictor.model, predictor.task, args.raw, args.grid_sample)
    ids, source = predictor.category_ids()
    return graph, Metadata(
        find_resize(predictor.cfg), predictor.classes, predictor.palette, ids if source else None
    )


def choose_size(args, graph, metadata):
    """Height and width of the input; None if they are dynamic."""
    if args.dynamic:
        return None
    if args.size:
        return tuple(args.size)
    size = default_size(metadata.resize, graph.preprocessing.divisor)
    print_lines(f'--size {size[0]} {size[1]} (height, width), from the test pipeline')
    return size


@report_errors
def main():
    args = parse_args()
    check_requirements(args.format)
    image = read_image(args.image) if args.image else random_image()
    graph, metadata = load_graph(args)
    dtype = 'float32' if args.raw else args.dtype
    size = choose_size(args, graph, metadata)
    options = Options(args.format, size, dtype, args.fp16)
    for line in export(graph, args.out, options, image, metadata):
        print_lines(line)


if __name__ == '__main__':
    main()
