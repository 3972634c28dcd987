"""Times and memory of focal modulations, backbones and Mask R-CNN."""

import itertools
import statistics
import time
from argparse import Namespace
from functools import partial

import torch
from benchmarking.detectors import Detector, copied, make_detector
from benchmarking.measuring import peak_gpu_memory
from benchmarking.networks import (
    OURS,
    as_published,
    feature_maps,
    on_path,
    row,
    swin,
    transformers_convnext,
    transformers_focalnet,
)
from benchmarking.timing import counted

from gpu_checks.operators import Precision, can_run
from gpu_checks.report import Skipped, markdown
from mmfocalnet import FocalNet, ops
from mmfocalnet.models.focal_modulation import FocalModulation

PUBLISHED = 'published layout'
TINY, BASE = 'FocalNet-T', 'FocalNet-B'
ARCHS = {TINY: 'tiny_lrf', BASE: 'base_lrf'}
WINDOW, LEVELS = 9, 3
# Shapes of images (B, 3, H, W), from large to small. Features of the first stage have a fourth of
# the height and width.
SHAPES = dict(cuda=((2, 3, 800, 1216), (2, 3, 512, 512)), cpu=((1, 3, 64, 96),))
STAGES = 4
# Seconds of a measurement, within the limits of repetitions.
SECONDS = dict(cuda=0.5, cpu=0.1)
MIN_REPETITIONS, MAX_REPETITIONS = dict(cuda=5, cpu=2), 100
MAX_BUFFERS = 32


def run(report):
    large, *_, small = (SHAPES[report.device] * 2)[:2]
    args = Namespace(device=report.device, amp=report.on_gpu, compile=False)
    if report.full and large != small:
        compare(report, TINY, large, backbones(TINY, args))
    compare_modulations(report, large, STAGES if report.full else 1)
    compare(report, TINY, small, backbones(TINY, args))
    if report.full:
        names = (PUBLISHED, TINY, 'Swin-T', 'R-50')
        makers = {name: partial(detector, name, args) for name in names}
        compare(report, 'Mask R-CNN', large, makers)
        for shape in dict.fromkeys((large, small)):
            compare(report, BASE, shape, backbones(BASE, args))


def compare_modulations(report, images, stages):
    """One focal modulation at the stages of FocalNet-T, on each path and as published."""
    # Bfloat16 without autocast, whose casts are those of neighbouring layers.
    dtype = torch.bfloat16 if report.on_gpu else torch.float32
    args = Namespace(device=report.device, amp=False)
    paths = [path for path in ops.PATHS if can_run('modulate', path, Precision(dtype), args.device)]
    for stage in range(stages):
        height, width = (side // 4 >> stage for side in images[2:])
        shape = (images[0], height, width, 96 << stage)

        def build(dim=shape[-1]):
            return FocalModulation(dim, WINDOW, LEVELS).to(dtype)

        makers = {PUBLISHED: row(args, lambda build=build: as_published(build()))}
        makers[OURS] = row(args, build)
        for path in paths:
            makers[f'{OURS}, {path} path'] = row(args, build, partial(on_path, path))
        compare(report, 'modulation', shape, makers, dtype)


def backbones(name, args):
    def ours():
        return FocalNet(arch=ARCHS[name], focal_windows=WINDOW, drop_path_rate=0)

    makers = {PUBLISHED: row(args, lambda: as_published(ours())), OURS: row(args, ours)}
    others = {
        'transformers FocalNet': row(args, transformers_focalnet, feature_maps),
        'timm FocalNet': row(args, timm_focalnet),
        'Swin-T (mmdet)': row(args, swin),
        'ConvNeXt-T (transformers)': row(args, transformers_convnext, feature_maps),
    }
    return makers | (others if name == TINY else {})


def timm_focalnet():
    import timm

    settings = dict(focal_windows=[WINDOW] * 4, drop_path_rate=0, features_only=True)
    return timm.create_model('focalnet_tiny_lrf', pretrained=False, **settings)


def detector(name, args):
    built = make_detector('mask_rcnn', TINY if name == PUBLISHED else name, args)
    if name == PUBLISHED:
        as_published(built.model.backbone)
    return built


def compare(report, name, shape, makers, dtype=None):
    """Measure each row and add a table."""
    rows = {}
    title = f'{name}, {" x ".join(map(str, shape))}, {"bfloat16" if report.on_gpu else "float32"}'
    for label, make in makers.items():
        report.check(f'{title}: {label}', measure_row, report, rows, label, make, shape, dtype)
    base = rows.get(PUBLISHED, {})
    columns = []
    for key in dict.fromkeys(itertools.chain(*rows.values())):
        columns += [key, f'{key} / published'] if key.endswith((' ms', ' MiB')) else [key]
    for numbers in rows.values():
        ratios = {f'{key} / published': numbers[key] / base[key] for key in numbers if key in base}
        numbers.update(ratios)
    cells = [[label, *(cell(numbers.get(c)) for c in columns)] for label, numbers in rows.items()]
    if rows:
        report.tables[title] = markdown(['', *columns], cells)


def cell(number):
    return '' if number is None else f'{number:.3g}'


def measure_row(report, rows, label, make, shape, dtype):
    """Measure a row; what is not installed or does not fit into memory is skipped."""
    try:
        numbers = measure(report, make(), shape, dtype)
    except torch.cuda.OutOfMemoryError:
        raise Skipped('out of memory') from None
    except Exception as error:
        ours = label.startswith((OURS, TINY)) or label == PUBLISHED
        if ours and not isinstance(error, ImportError):
            raise
        raise Skipped(f'{type(error).__name__}: {error}') from None
    rows[label] = dict(numbers)
    return numbers


def measure(report, network, shape, dtype):
    """Milliseconds, percentages of the measured rates, and MiB of a training step."""
    first = draw(network, shape, dtype)
    network.step(first)
    network.model.zero_grad(set_to_none=True)
    memory = {'memory, MiB': peak_gpu_memory(network, first)} if report.on_gpu else {}
    count = count_buffers(first) if report.on_gpu else 2
    inputs = [(first,), *((draw(network, shape, dtype),) for _ in range(count - 1))]
    flops, numbers = count_flops(network, first), {}
    for phase, function, passes in (('forward', network.predict, 1), ('training', network.step, 3)):
        if phase == 'forward' and isinstance(network, Detector):
            continue
        taken = median_seconds(function, inputs, report.device)
        numbers[f'{phase}, ms'] = 1e3 * taken
        if rate := report.rates.get('bfloat16' if report.on_gpu else 'float32'):
            numbers[f'{phase}, % of products'] = 100 * passes * flops / taken / rate
        if dtype and (rate := report.rates.get('copy')):
            # Forward: input, output and weights. Training: their gradients too.
            moved = 2 * first.nbytes + sum(p.nbytes for p in network.model.parameters())
            numbers[f'{phase}, % of copies'] = 100 * min(passes, 2) * moved / taken / rate
    return numbers | memory


def count_flops(network, data):
    """FLOPs of the matrix products and convolutions of a forward pass."""
    if not isinstance(network, Detector):
        return network.count_flops(data)[0]
    batch = network.model.data_preprocessor(copied(data), training=True)
    return counted(partial(network.model, **batch, mode='loss'))


def draw(network, shape, dtype):
    """Random inputs of a network; those of a modulation have its type."""
    inputs = network.inputs(shape)
    return inputs.detach().to(dtype).requires_grad_() if dtype else inputs


def count_buffers(data):
    """Number of inputs that together are twice as large as the cache of the GPU."""
    cache = getattr(torch.cuda.get_device_properties(0), 'L2_cache_size', 2**26)
    count = -(-2 * cache // data.nbytes) if torch.is_tensor(data) else 2
    return min(max(count, 2), MAX_BUFFERS)


def median_seconds(function, inputs, device):
    """Median time of a function that is called with each of the inputs in turn.

    Args:
        function: Called with the elements of an input.
        inputs: Tuples of arguments; together larger than the cache.
        device: ``'cuda'``, timed with events, or ``'cpu'``.
    """
    measured = seconds_on_gpu if device == 'cuda' else seconds_on_cpu
    function(*inputs[0])  # compile, initialize libraries
    (once,) = measured(function, inputs[:1])
    count = min(max(int(SECONDS[device] / once), MIN_REPETITIONS[device]), MAX_REPETITIONS)
    return statistics.median(
        measured(function, [*itertools.islice(itertools.cycle(inputs), count)])
    )


def seconds_on_gpu(function, inputs):
    """Seconds between events of consecutive calls, so that the GPU does not wait for launches."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(inputs) + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for args, event in zip(inputs, events[1:], strict=True):
        function(*args)
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(events)]


def seconds_on_cpu(function, inputs):
    taken = []
    for args in inputs:
        start = time.perf_counter()
        function(*args)
        taken.append(time.perf_counter() - start)
    return taken
