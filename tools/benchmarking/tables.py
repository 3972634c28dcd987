"""The tables of tools/benchmark.py."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from prettytable import PrettyTable, TableStyle

from benchmarking.detectors import (
    BACKBONE_BACKWARD,
    DETECTORS,
    HEADS_BACKWARD,
    OPTIMIZER,
    PHASES,
)
from benchmarking.exported import measure_exported, megabytes
from benchmarking.loading import pipeline_seconds, training_images, training_set
from benchmarking.measuring import measure, peak_memory, rows_of, step_seconds
from benchmarking.networks import OURS, backbones, focalnet
from benchmarking.timing import TOTAL
from mmfocalnet.errors import UserError

DIM, SIZES = 96, (9, 11, 13)  # channels and kernels of FocalNet-T
GROWTH = [(512, 512), (800, 1216), (1200, 1824), (1600, 2400)]


def compare(args):
    what, shape = args.what, (args.batch, 3, *args.size)
    if what == 'operator':  # Features of the first stage, which has stride 4.
        shape = (args.batch, args.size[0] // 4, args.size[1] // 4, args.dim)
    times, machine = measure(rows_of(what, args), shape, args)
    columns = ['forward, s', 'x floor', 'training, s', 'x floor ', 'memory, MiB']
    with_first = what == 'backbone' and args.compile
    table = PrettyTable(['', *columns, *(['first call, s'] if with_first else [])])
    for name, row_times in times.items():
        cells = [*floor_cells(row_times, machine), f'{peak_memory(what, name, shape, args):.0f}']
        table.add_row([name, *cells, *([f'{row_times.first:.1f}'] if with_first else [])])
    show(table)
    print('\nTraining is forward and backward. Memory is the peak of a training step.')
    if with_first:
        print('The first call is a training step and a prediction, compilation included.')
    print_machine(machine)


def floor_cells(times, machine):
    predict, step = times.predict[TOTAL], times.step[TOTAL]
    predict_floor, step_floor = times.floors(machine)
    return [
        *(f'{predict:.4g}', f'{predict / predict_floor:.2f}'),
        *(f'{step:.4g}', f'{step / step_floor:.2f}'),
    ]


def print_machine(machine):
    print(
        f'\nThe floor is the time of the matrix products and convolutions, three times the forward '
        f'pass in training, at the rate of this machine in this run: {machine}.'
    )


def compare_detectors(args):
    with training_images(args) as root:
        for name in DETECTORS if args.model == 'all' else [args.model]:
            load = sum(pipeline_seconds(training_set(name, root)).values())
            compare_phases(name, load, args)


def compare_phases(name, load, args):
    """Tables of a prediction and of a training step of a detector with each backbone."""
    shape = detector_shape(name, args)
    times, machine = measure(rows_of(name, args), shape, args)
    title = f'{name}, {shape[0]} x {shape[2]} x {shape[3]}'
    predict_floors, step_floors = zip(*(t.floors(machine) for t in times.values()), strict=True)
    predictions = {row: row_times.predict for row, row_times in times.items()}
    show(phase_table(f'{title}: prediction, s', predictions, predict_floors))
    print()
    steps = {row: row_times.step for row, row_times in times.items()}
    table = phase_table(f'{title}: training step, s', steps, step_floors)
    table.add_row(['memory, MiB', *(f'{peak_memory(name, row, shape, args):.0f}' for row in times)])
    table.add_row(['loading, by one core', *[f'{shape[0] * load:.3g}'] * len(times)])
    show(table)
    print_machine(machine)
    print()


def detector_shape(name, args):
    """Shape of the images: as in training, unless --size and --batch are given."""
    is_semantic = name == 'upernet'
    size = args.size or ((512, 512) if is_semantic else (800, 1216))
    # The batch norms of UperNet need two images.
    return (max(args.batch, 1 + is_semantic), 3, *size)


def phase_table(title, seconds_of, floors):
    """A row per phase and a column per backbone."""
    table = PrettyTable([title, *seconds_of])
    columns = list(seconds_of.values())
    order = [name for *_, name in PHASES] + [HEADS_BACKWARD, BACKBONE_BACKWARD, OPTIMIZER]
    for name in dict.fromkeys(order):
        if name in columns[0]:
            table.add_row([name, *(f'{phases[name]:.3g}' for phases in columns)])
    totals = [phases[TOTAL] for phases in columns]
    others = [2 * phases[TOTAL] - sum(phases.values()) for phases in columns]
    table.add_row(['other', *(f'{max(other, 0):.3g}' for other in others)])
    table.add_row([TOTAL, *(f'{total:.4g}' for total in totals)])
    ratios = [total / floor for total, floor in zip(totals, floors, strict=True)]
    table.add_row(['x floor', *(f'{ratio:.2f}' for ratio in ratios)])
    return table


def compare_loaders(args):
    """Images per second that one core loads, and that a training step takes."""
    columns = ['loaded by one core, images/s', 'trained, images/s', 'cores needed']
    table = PrettyTable(['', *columns])
    details = PrettyTable(['pipeline', 'step', 'ms per image'])
    with training_images(args) as root:
        for name in ('mask_rcnn', 'upernet'):
            taken = pipeline_seconds(training_set(name, root))
            for step, in_step in taken.items():
                details.add_row([name, step, f'{1e3 * in_step:.2f}'])
            loaded = 1 / sum(taken.values())
            shape = detector_shape(name, args)
            trained = shape[0] / step_seconds(rows_of(name, args)['FocalNet-T'], shape, args)
            table.add_row([name, f'{loaded:.1f}', f'{trained:.3g}', f'{trained / loaded:.2g}'])
    show(details)
    print()
    show(table)


def compare_exported(args):
    """Time of an image in PyTorch and in exported files."""
    times, flops, machine = measure_exported(args)
    sizes = {str(file): f'{megabytes(file):.1f}' for file in args.files}
    table = PrettyTable(['', 's', 'of PyTorch', 'x floor', 'MB'])
    for name, taken in times.items():
        ratios = [taken / times['PyTorch'], taken / (flops / machine.rate)]
        table.add_row([name, f'{taken:.4g}', *(f'{r:.2f}' for r in ratios), sizes.get(name, '')])
    show(table)
    print_machine(machine)


def compare_kernels(args):
    """Instructions of the Triton kernels, and floors on GPUs that need not be present."""
    try:
        from benchmarking import kernels
    except ImportError as error:
        raise UserError(f'kernels: {error}. Install it: pip install triton') from None
    columns = ['registers', 'warps per SM', 'instructions per MAC', 'loads per MAC']
    table = PrettyTable(['kernel', 'size', *columns])
    costs = {}
    for launch in kernels.launches(DIM, SIZES, torch.bfloat16):
        if 'K' not in launch.constants:
            continue
        compiled = kernels.cost(kernels.compile_kernel(launch, 80))
        size, share = launch.constants['K'], kernels.product_share(launch)
        each = compiled.per_product() / share
        costs.setdefault(size, []).append(each)
        warps = compiled.warps(per_program=4)
        loads = compiled.per_product('LDG') / share
        cells = [compiled.registers, warps, f'{each:.2f}', f'{loads:.3f}']
        table.add_row([launch.kernel, f'{size} x {size}', *cells])
    show(table)
    print(f'\nbfloat16, {DIM} channels, sm_80. MAC: useful multiply-accumulates.\n')
    floors(costs)


def floors(costs):
    """Times of FocalNet-T at data-sheet rates, forward and training."""
    from benchmarking import kernels

    with torch.device('meta'):
        work = kernels.forward_work(focalnet(), (2, 3, 800, 1216))
    columns = ['matrix products', 'memory traffic', 'depth-wise MACs', 'our depth-wise kernels']
    table = PrettyTable(['ms', 'pass', *columns])
    for name, gpu in kernels.GPUS.items():
        for title, passes in (('forward', 1), ('training', 3)):
            used = {size: each[:passes] for size, each in costs.items()}
            taken = kernels.seconds(gpu, work, used, passes)
            table.add_row([name, title, *(f'{1e3 * one:.2f}' for one in taken)])
    show(table)
    depthwise, traffic = sum(work.depthwise.values()), sum(kernels.TRAFFIC.values())
    print(
        f'\nFocalNet-T, 2 x 3 x 800 x 1216, bfloat16. Forward pass: {work.matrix / 1e9:.0f} GMAC '
        f'of matrix products, {depthwise / 1e9:.1f} GMAC of depth-wise convolutions, '
        f'{traffic * work.elements / 1e9:.1f} GB of memory traffic.'
    )


def grow(args):
    """Time and memory against the number of pixels and the batch size."""
    columns = ['forward, s', 'x floor', 'training, s', 'x floor ', 'memory, MiB']
    table = PrettyTable(['images', 'Mpixels', *columns, 'memory per Mpixel'])
    points = []
    for shape in [(1, 3, *size) for size in GROWTH] + [(n, 3, 512, 512) for n in (2, 4)]:
        measured, machine = measure({OURS: backbones(args)[OURS]}, shape, args)
        times = measured[OURS]
        memory = peak_memory('backbone', OURS, shape, args)
        pixels = shape[0] * shape[2] * shape[3] / 1e6
        points.append((shape[0], pixels, times.predict[TOTAL], times.step[TOTAL], memory / 1024))
        cells = [f'{shape[0]} x {shape[2]} x {shape[3]}', f'{pixels:.2f}']
        cells += [*floor_cells(times, machine), f'{memory:.0f}', f'{memory / pixels:.0f}']
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


def processor(args):
    if args.device == 'cuda':
        return f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}'
    cpuinfo = Path('/proc/cpuinfo').read_text().splitlines()
    model = next(line.split(':', 1)[1].strip() for line in cpuinfo if line.startswith('model name'))
    return (
        f'{model}, {torch.get_num_threads()} threads, PyTorch {torch.__version__} '
        f'({torch.backends.cpu.get_cpu_capability()})'
    )
