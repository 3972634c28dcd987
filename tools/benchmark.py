"""Time FocalNet and other backbones and print a table: python tools/benchmark.py backbone

In each round all rows are timed in turn, and the machine's rate of matrix products. Tables show
medians. The floor of a row is the time of its matrix products and convolutions at that rate, three
times the forward pass in training. Machines differ: compare "x floor", or rows of one run.
"""

import argparse
import signal
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.cli.flags import integer_flag
from mmfocalnet.files import make_folder

# Of benchmarking/detectors.py, which imports PyTorch; --help does not wait for it.
DETECTORS = ('mask_rcnn', 'atss', 'upernet')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='what', required=True)
    operator = commands.add_parser('operator', help='one focal modulation')
    operator.add_argument('--dim', type=integer_flag(1), default=96, help='channels')
    backbone = commands.add_parser('backbone', help='FocalNet-T and other backbones')
    backbone.add_argument('--compile', action='store_true', help='add a row for torch.compile')
    detector = commands.add_parser(
        'detector', help='the phases of Mask R-CNN, ATSS and UperNet with three backbones'
    )
    detector.add_argument('--model', choices=['all', *DETECTORS], default='all')
    dino = commands.add_parser('dino', help='a training step of DINO')
    loader = commands.add_parser('loader', help='the training pipelines of COCO and ADE20K')
    growth = commands.add_parser('growth', help='FocalNet-T for growing images and batches')
    growth.add_argument('--out', help='folder for a plot')
    growth.set_defaults(compile=False)
    kernels = commands.add_parser(
        'kernels', help='instructions of the Triton kernels and floors on GPUs, without a GPU'
    )
    kernels.set_defaults(threads=None, device='cpu')
    exported = commands.add_parser('exported', help='a model in PyTorch and in exported files')
    exported.add_argument('config', help='config that the model was exported with')
    exported.add_argument('checkpoint', help='checkpoint that it was exported with')
    exported.add_argument(
        'files', nargs='+', type=Path, help='.onnx and .xml files of tools/export.py, not --raw'
    )
    exported.add_argument(
        '--size',
        type=integer_flag(1),
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the image, for files of any size',
    )
    add_rounds_flag(exported)
    # The runtimes use all cores, as PyTorch does by default.
    exported.set_defaults(threads=None, device='cpu', amp=False)
    for command in (detector, loader):
        command.add_argument(
            '--data-root',
            help='folder with coco/ and ade/ (default: generated images of 480x640)',
        )
    for command in (operator, backbone, detector, dino, loader):
        per_model = command in (detector, loader)
        add_size_flags(command, None if per_model else (800, 1216))
    for command in (operator, backbone, detector, dino, loader, growth):
        add_run_flags(command)
    return parser.parse_args()


def add_size_flags(parser, default):
    parser.add_argument(
        '--size',
        type=integer_flag(1),
        nargs=2,
        default=default,
        metavar=('H', 'W'),
        help='height and width of the images in pixels (default: 800 1216, UperNet 512 512)',
    )
    parser.add_argument('--batch', type=integer_flag(1), default=1, help='images per batch')


def add_rounds_flag(parser):
    parser.add_argument(
        '--rounds', type=integer_flag(1), default=5, help='repetitions; medians are printed'
    )


def add_run_flags(parser):
    add_rounds_flag(parser)
    parser.add_argument('--threads', type=integer_flag(1), default=2, help='CPU threads')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from benchmarking import measuring, tables


@report_errors
def main():
    args = parse_args()
    if args.what == 'growth' and args.out:
        make_folder('--out', args.out)
    measuring.prepare(args)
    print(f'{tables.processor(args)}\n')
    commands = dict(
        growth=tables.grow,
        detector=tables.compare_detectors,
        loader=tables.compare_loaders,
        exported=tables.compare_exported,
        kernels=tables.compare_kernels,
    )
    commands.get(args.what, tables.compare)(args)


if __name__ == '__main__':
    main()
