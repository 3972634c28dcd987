"""Time FocalNet and other backbones and print a table: python tools/benchmark.py backbone

All rows are timed in turn in each round, and the table shows medians. Compare rows of one run;
do not compare seconds of different runs.
"""

import argparse
import logging
import os
import signal
import statistics
import time
import types
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.cli.flags import integer_flag
from mmfocalnet.errors import UserError
from mmfocalnet.files import make_folder

DINO = 'configs/dino/detrex_focalnet_t_4scale_12e.py'
DETECTORS = {'detector': 'configs/mask_rcnn/focalnet_t_1x.py', 'dino': DINO}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'what',
        choices=['operator', 'backbone', *DETECTORS, 'growth'],
        help='focal modulation alone; FocalNet-T; a training step of Mask R-CNN or DINO; '
        'FocalNet-T for growing images and batches',
    )
    parser.add_argument(
        '--size',
        type=integer_flag(1),
        nargs=2,
        default=(800, 1216),
        metavar=('H', 'W'),
        help='height and width of the images in pixels',
    )
    parser.add_argument('--dim', type=integer_flag(1), default=96, help='channels of the operator')
    parser.add_argument('--batch', type=integer_flag(1), default=1, help='images per batch')
    parser.add_argument(
        '--rounds', type=integer_flag(1), default=5, help='repetitions; medians are printed'
    )
    parser.add_argument('--threads', type=integer_flag(1), default=2, help='CPU threads')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--compile', action='store_true', help='add a row for torch.compile')
    parser.add_argument('--out', help='folder for the plot of "growth"')
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from prettytable import PrettyTable, TableStyle
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmfocalnet import ops
from mmfocalnet.models import FocalNet
from mmfocalnet.models.focal_modulation import FocalModulation
from mmfocalnet.models.focalnet import Mlp
from mmfocalnet.ops import matrix_products

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(embed_dim=96, depths=(2, 2, 6, 2), focal_levels=3, focal_windows=9)
GROWTH = [(512, 512), (800, 1216), (1200, 1824), (1600, 2400)]
OURS = 'mmfocalnet'
MMCV = "mmfocalnet, mmcv's attention"


# ------------------------------------------------------------------------------------------------
# Rows of the tables: name and builder, which returns the module and how to call it
# ------------------------------------------------------------------------------------------------


def algorithm_1(self, x):
    """Algorithm 1 in the published layout: channels-first, gradients by autograd."""
    x = self.f(x).permute(0, 3, 1, 2).contiguous()
    query, context, gates = torch.split(x, (self.dim, self.dim, self.focal_level + 1), 1)
    total = 0
    for level in range(self.focal_level):
        context = self.focal_layers[level](context)
        total = total + context * gates[:, level : level + 1]
    context = F.gelu(context.mean(2, keepdim=True).mean(3, keepdim=True))
    total = total + context * gates[:, self.focal_level :]
    x = query * self.h(total)
    return self.proj(x.permute(0, 2, 3, 1).contiguous())


def as_published(model):
    """Make a model compute as the published code does."""
    for module in model.modules():
        if isinstance(module, FocalModulation):
            module.forward = types.MethodType(algorithm_1, module)
        if isinstance(module, Mlp):
            module.forward = types.MethodType(lambda self, x: self.fc2(F.gelu(self.fc1(x))), module)
    return model


def focalnet(**kwargs):
    return FocalNet(**TINY, drop_path_rate=0, **kwargs)


def on_path(name, function):
    def run(*args):
        with ops.use_path(name):
            return function(*args)

    return run


def transformers_focalnet():
    from transformers import FocalNetBackbone, FocalNetConfig

    config = FocalNetConfig(
        **transformers_sizes([2, 2, 6, 2]),
        embed_dim=96,
        focal_levels=[3] * 4,
        focal_windows=[9] * 4,
        drop_path_rate=0,
    )
    return FocalNetBackbone(config)


def transformers_convnext():
    from transformers import ConvNextBackbone, ConvNextConfig

    return ConvNextBackbone(ConvNextConfig(**transformers_sizes([3, 3, 9, 3])))


def transformers_sizes(depths):
    stages = [f'stage{i}' for i in range(1, 5)]
    return dict(hidden_sizes=[96, 192, 384, 768], depths=depths, out_features=stages)


def swin():
    from mmdet.models.backbones import SwinTransformer

    return SwinTransformer(drop_path_rate=0)


def feature_maps(model):
    """Call a backbone of transformers, which wraps its feature maps."""
    return lambda x: model(x).feature_maps


def row(device, build, call=lambda model: model):
    def make():
        torch.manual_seed(0)
        model = build().to(device).train()
        return model, call(model)

    return make


def backbones(device):
    fast, fallback = ('triton', 'reference') if device == 'cuda' else ('numba', 'pytorch')
    builders = {
        'published layout': [lambda: as_published(focalnet())],
        'transformers FocalNet': [transformers_focalnet, feature_maps],
        OURS: [focalnet],
        f'{OURS}, use_checkpoint': [partial(focalnet, use_checkpoint=True)],
        f'{OURS} without {fast}': [focalnet, partial(on_path, fallback)],
        f'{OURS}, reference path': [focalnet, partial(on_path, 'reference')],
        f'{OURS}, torch.compile': [focalnet, partial(torch.compile, dynamic=False)],
        'Swin-T (mmdet)': [swin],
        'ConvNeXt-T (transformers)': [transformers_convnext, feature_maps],
    }
    if device == 'cuda':
        del builders[f'{OURS}, reference path']
    return {name: row(device, *arguments) for name, arguments in builders.items()}


def operators(device, dim):
    def build():
        return FocalModulation(dim, focal_window=9, focal_level=3)

    unused = ('numba', 'pytorch') if device == 'cuda' else ('triton',)
    rows = {'published layout': row(device, lambda: as_published(build()))}
    for name in ops.PATHS:
        if name not in unused:
            rows[f'{OURS}, {name} path'] = row(device, build, partial(on_path, name))
    return rows


def detectors(device, config):
    """The losses of a detector with each backbone."""

    def detector(change=lambda backbone: None, backbone=None):
        cfg = Config.fromfile(ROOT / config)
        cfg.model.backbone.update(init_cfg=None)
        cfg.model.backbone = backbone or cfg.model.backbone
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        model.init_weights()
        change(model.backbone)
        return model

    def losses(model):
        return lambda x: [detection_loss(model, x)]

    swin_cfg = dict(type='mmdet.SwinTransformer')
    if config == DINO:
        return {
            MMCV: row(device, detector, lambda model: with_mmcv_attention(losses(model))),
            OURS: row(device, detector, losses),
        }
    return {
        'published layout': row(device, partial(detector, as_published), losses),
        OURS: row(device, detector, losses),
        'Swin-T (mmdet)': row(device, partial(detector, backbone=swin_cfg), losses),
    }


def with_mmcv_attention(function):
    from mmcv.ops import multi_scale_deform_attn as module

    def run(x):
        ours = module.multi_scale_deformable_attn_pytorch
        module.multi_scale_deformable_attn_pytorch = module.mmcv_attention
        try:
            return function(x)
        finally:
            module.multi_scale_deformable_attn_pytorch = ours

    return run


def detection_loss(model, images):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = images.shape[2:]
    torch.manual_seed(0)
    corner = torch.rand(8, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corner, corner + torch.tensor([width / 4, height / 4])], dim=1)
    masks = BitmapMasks([(torch.rand(height, width) > 0.5).byte().numpy()] * 8, height, width)
    shapes = ('img_shape', 'pad_shape', 'batch_input_shape')
    sample = DetDataSample(
        metainfo=dict.fromkeys(shapes, (height, width)),
        gt_instances=InstanceData(
            bboxes=boxes.to(images.device), labels=torch.arange(8).to(images.device), masks=masks
        ),
    )
    losses = model.loss(images, [sample.clone() for _ in images])
    return model.parse_losses(losses)[0]


# ------------------------------------------------------------------------------------------------
# Measuring
# ------------------------------------------------------------------------------------------------


def forward(call, x, amp):
    with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
        out = call(x)
    return out if isinstance(out, (tuple, list)) else [out]


def step(model, call, x, amp):
    model.zero_grad(set_to_none=True)
    x.grad = None
    sum(out.float().mean() for out in forward(call, x, amp)).backward()


def seconds(function, device):
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(rows, x, args):
    """Medians per row: forward without gradients, and a complete training step."""
    built = {}
    for name, make in rows.items():
        try:
            model, call = make()
            step(model, call, x, args.amp)
        except (ImportError, UserError) as error:
            print(f'{name}: skipped ({error})')
            continue
        built[name] = (model, call)
    taken = {name: ([], []) for name in built}
    for _ in range(args.rounds):
        for name, (model, call) in built.items():
            with torch.no_grad():
                inference = seconds(partial(forward, call, x, args.amp), args.device)
            training = seconds(partial(step, model, call, x, args.amp), args.device)
            taken[name][0].append(inference)
            taken[name][1].append(training)
    return {name: tuple(map(statistics.median, both)) for name, both in taken.items()}


def peak_memory(what, name, shape, args):
    """MiB that a training step needs beyond the model and its input, measured in a new process."""
    # Otherwise glibc's heap keeps unused memory between tensors of up to 32 MiB.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = str(2**20)
    context = get_context('forkserver')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, what, name, shape, args).result()


def _peak_memory(what, name, shape, args):
    prepare(args)
    model, call = rows_of(what, args)[name]()
    step(model, call, torch.randn(1, *small(shape), device=args.device), args.amp)
    model.zero_grad(set_to_none=True)
    x = torch.randn(*shape, device=args.device, requires_grad=what == 'operator')
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, call, x, args.amp)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Resets the peak of resident memory that Linux reports.
    Path('/proc/self/clear_refs').write_text('5')
    before = resident('VmRSS')
    step(model, call, x, args.amp)
    return resident('VmHWM') - before


def small(shape):
    """Shape of a smaller input of the same kind, for compilation and imports.

    DINO selects 900 queries of an image.
    """
    return (3, 256, 256) if shape[1] == 3 else (8, 8, shape[3])


def resident(field):
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(status[field].split()[0]) / 1024


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def rows_of(what, args):
    if what == 'operator':
        return operators(args.device, args.dim)
    if what in DETECTORS:
        return detectors(args.device, DETECTORS[what])
    rows = backbones(args.device)
    if not args.compile:
        del rows[f'{OURS}, torch.compile']
    return rows


def compare(what, shape, args):
    rows = rows_of(what, args)
    x = torch.randn(*shape, device=args.device, requires_grad=what == 'operator')
    medians = times(rows, x, args)
    bases = ('transformers FocalNet', 'published layout', MMCV)
    base = next(name for name in bases if name in medians)
    columns = ['forward, s', 'its speed', 'with backward, s', 'its speed ', 'memory, MiB']
    table = PrettyTable(['', *columns, 'its share'])
    published = base if base == MMCV else 'published layout'
    memory = {name: peak_memory(what, name, shape, args) for name in medians}
    for name, (inference, training) in medians.items():
        cells = [f'{inference:.4g}', f'{medians[base][0] / inference:.2f}']
        cells += [f'{training:.4g}', f'{medians[base][1] / training:.2f}']
        share = memory[name] / memory[published]
        table.add_row([name, *cells, f'{memory[name]:.0f}', f'{share:.2f}'])
    show(table)
    print(
        f'\nTraining is forward and backward. Speed is relative to {base}, the peak memory of a '
        f'training step relative to {published}.'
    )
    return medians


def floor(shape, medians):
    """Print the time of the arithmetic alone at this machine's rate, and the ratio to it."""
    model = focalnet()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(*shape))
    flops = counter.get_total_flops()
    a = torch.randn(2048, 2048)
    libraries = (lambda: a @ a), (lambda: matrix_products.linear(a, a))
    fastest = min(
        statistics.median(seconds(product, 'cpu') for _ in range(9)) for product in libraries
    )
    rate = 2 * 2048**3 / fastest
    inference, training = medians[OURS]
    print(
        f'\nLower bound: {flops / 2e9:.1f} G multiply-accumulates of matrix products and '
        f'convolutions take {flops / rate:.2f} s forward and {3 * flops / rate:.2f} s in training '
        f'at the {rate / 1e9:.0f} GFLOP/s of a 2048 x 2048 product on this machine. {OURS} takes '
        f'{inference * rate / flops:.2f} and {training * rate / flops / 3:.2f} times that.'
    )


def grow(args):
    """Time and memory against the number of pixels and the batch size."""
    table = PrettyTable(
        ['images', 'Mpixels', 'forward, s', 'per Mpixel', 'training, s', 'training per Mpixel']
        + ['memory, MiB', 'memory per Mpixel']
    )
    points = []
    for shape in [(1, 3, *size) for size in GROWTH] + [(n, 3, 512, 512) for n in (2, 4)]:
        rows = {OURS: backbones(args.device)[OURS]}
        inference, training = times(rows, torch.randn(*shape, device=args.device), args)[OURS]
        memory = peak_memory('backbone', OURS, shape, args)
        pixels = shape[0] * shape[2] * shape[3] / 1e6
        points.append((shape[0], pixels, inference, training, memory / 1024))
        cells = [f'{shape[0]} x {shape[2]} x {shape[3]}', f'{pixels:.2f}']
        for value, digits in ((inference, 3), (training, 3), (memory, 0)):
            cells += [f'{value:.{digits}f}', f'{value / pixels:.{digits}f}']
        table.add_row(cells)
    show(table)
    if args.out:
        draw(points, Path(args.out) / 'cost_against_pixels.png')


def draw(points, file):
    figure = Figure(figsize=(8, 3.4), layout='constrained')
    time_axes, memory_axes = figure.subplots(1, 2)
    plots = [(time_axes, 2, 'forward'), (time_axes, 3, 'forward + backward')]
    for axes, column, label in [*plots, (memory_axes, 4, 'one image')]:
        single = [(point[1], point[column]) for point in points if point[0] == 1]
        batches = [(point[1], point[column]) for point in points if point[0] > 1]
        (line,) = axes.plot(*zip(*single, strict=True), 'o-', label=label)
        axes.plot(*zip(*batches, strict=True), 'x', color=line.get_color())
    time_axes.set(title='Time (x: 2 and 4 images)', ylabel='s')
    memory_axes.set(title='Peak memory of a training step', ylabel='GiB')
    for axes in (time_axes, memory_axes):
        axes.set(xlabel='Mpixels', xlim=(0, None), ylim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    print(f'\nSaved {file}')


def show(table):
    table.set_style(TableStyle.MARKDOWN)
    table.align = 'r'
    table.align[table.field_names[0]] = 'l'
    print(table)


def machine(args):
    if args.device == 'cuda':
        return f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}'
    cpuinfo = Path('/proc/cpuinfo').read_text().splitlines()
    model = next(line.split(':', 1)[1].strip() for line in cpuinfo if line.startswith('model name'))
    return (
        f'{model}, {args.threads} threads, PyTorch {torch.__version__} '
        f'({torch.backends.cpu.get_cpu_capability()})'
    )


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def prepare(args):
    warnings.filterwarnings('ignore')
    logging.disable(logging.INFO)  # MMEngine logs how it initializes each weight
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: PyTorch finds no GPU. Use --device cpu.')
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)


@report_errors
def main():
    args = parse_args()
    if args.out:
        make_folder('--out', args.out)
    prepare(args)
    print(f'{machine(args)}\n')
    height, width = args.size
    if args.what == 'growth':
        grow(args)
    elif args.what == 'operator':
        # Features of the first stage, which has stride 4.
        compare('operator', (args.batch, height // 4, width // 4, args.dim), args)
    else:
        shape = (args.batch, 3, height, width)
        medians = compare(args.what, shape, args)
        if args.what == 'backbone' and args.device == 'cpu':
            floor(shape, medians)


if __name__ == '__main__':
    main()
