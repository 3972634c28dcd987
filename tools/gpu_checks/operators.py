"""Every path of every operator against the reference in float64 on the CPU; small backbones."""

import functools
import math
import shutil
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch.nn import functional as F

from gpu_checks.report import Skipped, Wrong, largest_error
from mmfocalnet import FocalNet, ops
from mmfocalnet.errors import ConfigError
from mmfocalnet.ops import reference
from mmfocalnet.ops.dispatch import OPERATORS

REFERENCES = dict(
    modulate=reference.modulate,
    linear=F.linear,
    layer_norm=functools.partial(reference.layer_norm, eps=1e-5),
    feed_forward=reference.feed_forward,
    embed_patches=reference.embed_patches,
)
# Shapes of features (B, H, W, C), focal levels and window; the last one is large.
MODULATIONS = [
    ((2, 7, 13, 24), 3, 9),
    ((2, 1, 1, 16), 1, 3),
    ((2, 7, 13, 96), 4, 3),
    ((2, 5, 9, 192), 2, 5),
    ((2, 3, 4, 768), 3, 3),
    ((2, 2, 3, 1536), 1, 7),
    ((2, 1, 33, 17), 2, 7),
    ((2, 11, 9, 16), 4, 9),
    ((1, 100, 152, 16), 3, 3),
]
# Shapes of features (B, H, W, C) and output channels.
LAYERS = [((2, 7, 13, 96), 33), ((2, 1, 1, 16), 24), ((2, 5, 4, 768), 192), ((1, 3, 3, 1536), 768)]
# Shapes of images (B, C, H, W), output channels and size of the patches.
PATCHES = [((2, 3, 28, 52), 96, 4), ((2, 96, 6, 10), 192, 2), ((2, 3, 32, 16), 24, 16)]
CASES = dict.fromkeys(OPERATORS, LAYERS) | dict(modulate=MODULATIONS, embed_patches=PATCHES)
# Bounds of relative errors. Gradients of weights are sums over all pixels. In lower precisions, a
# chain of four levels rounds 16 times, each time by up to half an eps.
FLOAT32, FLOAT32_WEIGHTS, HALF_EPS = 1e-5, 1e-4, 8
BACKBONE = 1e-4
# Bytes that the check of large tensors may need.
LARGE_BYTES = 60 * 2**30


class Precision(NamedTuple):
    """Type of the tensors, and of autocast."""

    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    def __str__(self):
        name = str(self.autocast or self.dtype).removeprefix('torch.')
        return f'autocast to {name}' if self.autocast else name

    def limit(self, name):
        """Bound of the relative error of an output or gradient."""
        dtype = self.autocast or self.dtype
        if dtype == torch.float32:
            return FLOAT32 if name in ('output', 'gradient of x') else FLOAT32_WEIGHTS
        return HALF_EPS * torch.finfo(dtype).eps


LOWER = (Precision(torch.bfloat16), Precision(torch.float16))
AUTOCAST = (Precision(autocast=torch.bfloat16), Precision(autocast=torch.float16))
# Numbers of modulations with --full and --quick.
MODULATIONS_OF = {Precision(): (len(MODULATIONS), 4), LOWER[0]: (5, 2)}


def run(report):
    with exact():
        if report.on_gpu:
            report.check('Triton', triton_works, report.device)
        check_paths(report, 'modulate', Precision())
        for path in runnable('modulate', Precision(), report.device):
            args = (path, report.device)
            report.check(f'strided inputs, {path} path', strided, *args)
            report.check(f'NaN in new memory, {path} path', nan_memory, *args)
            if path.startswith(('numba', 'triton')):
                report.check(f'equal bits in two runs, {path} path', equal_bits, *args)
        report.check('several streams', several_streams, report)
        report.check('second GPU', second_gpu)
        types = 2 if report.on_gpu else 1  # float16 is a type of GPUs
        for precision in (*LOWER[:types], *AUTOCAST[:types]):
            check_paths(report, 'modulate', precision)
        for operator in OPERATORS:
            for precision in (Precision(), *LOWER[:types]):
                if operator != 'modulate':
                    check_paths(report, operator, precision)
        if report.on_gpu:
            report.check('measured choice of the path', measured_choice, report.device)


def run_backbones(report):
    with exact():
        report.check('backbone against float64', backbone_against_float64, report)
        report.check('CUDA graph', cuda_graph, report)
        if report.full:
            report.check('more than 2**31 elements', large_tensors, report)
        if report.full or report.on_gpu:
            report.check('torch.compile', compiled_backbone, report)


@contextmanager
def exact(tf32=False, deterministic=True):
    """Forbid TF32, and the measurement of paths, which would compile many kernels."""
    settings = [
        (torch.backends.cuda.matmul, 'allow_tf32', tf32),
        (torch.backends.cudnn, 'allow_tf32', tf32),
        (torch.backends.cudnn, 'deterministic', deterministic),
    ]
    before = [getattr(owner, name) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def check_paths(report, operator, precision):
    """Add a check for each path of an operator."""
    cases = CASES[operator]
    if operator == 'modulate':  # each kernel of Triton takes a second to compile
        full, quick = MODULATIONS_OF.get(precision, (3, 1))
        cases = cases[: full if report.full else quick]
    for path in runnable(operator, precision, report.device):
        # Other numbers of warps: the same kernels in other tiles.
        few = cases[:1] if path.startswith('triton_') else cases
        args = (operator, few, path, precision, report.device)
        report.check(f'{operator}, {path} path, {precision}', compare_cases, *args)


def runnable(operator, precision, device):
    return [
        path.name for path in OPERATORS[operator] if can_run(operator, path.name, precision, device)
    ]


def measured_choice(device):
    """What is chosen by measurement computes the same."""
    with exact(deterministic=False):
        error = case_error('modulate', MODULATIONS[0], LOWER[0], device)
    shape, levels, window = MODULATIONS[0]
    lines = ops.explain(shape, window, levels, dtype=LOWER[0].dtype, device=device).split('\n')
    times = [line for line in lines if 'runs for' in line]
    if not times:
        raise Wrong('no path was measured')
    return {'error': error, 'times': '; '.join(times)}


def triton_works(device):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        explained = ops.explain((1, 8, 8, 16), 9, 3, dtype=dtype, device=device)
        if 'triton: skipped' in explained:
            raise Wrong(f'{dtype}: ' + explained.replace('\n', '; '))
    return {'Triton': 'runs'}


def can_run(operator, path, precision, device):
    """Whether a path supports an operator. Other errors are left to the check."""
    tensors, *_ = expected_results(operator, CASES[operator][0], precision.dtype)
    try:
        with torch.no_grad():
            run_on(device, operator, tensors, path=path, autocast=precision.autocast)
    except ConfigError:
        return False
    except Exception:
        return True
    return True


def compare_cases(operator, cases, path, precision, device):
    errors = {}
    for case in cases:
        try:
            errors[case] = case_error(operator, case, precision, device, path=path)
        except Wrong as wrong:
            raise Wrong(f'{case}: {wrong}') from None
    worst = max(errors, key=errors.get)
    return {'largest error': errors[worst], 'of': str(worst), 'cases': len(errors)}


def case_error(operator, case, precision, device, **options):
    """Largest error of an output and all gradients."""
    tensors, grad, expected = expected_results(operator, case, precision.dtype)
    actual = results(device, operator, tensors, grad, autocast=precision.autocast, **options)
    return largest_error(actual, expected, precision.limit)


@functools.lru_cache(maxsize=64)
def expected_results(operator, case, dtype):
    """Tensors of a case on the CPU, a gradient of the output, and the results in float64."""
    tensors = make_tensors(operator, case, dtype)
    double = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    out = call(REFERENCES[operator], operator, double)
    grad = torch.randn_like(out).to(dtype)
    return tensors, grad, with_gradients(out, double, grad.double())


def results(device, operator, tensors, grad, layout=lambda tensor: tensor, **options):
    """Output and all gradients on a device, from tensors in a memory layout."""
    leaves = {
        name: layout(tensor.detach().to(device)).requires_grad_()
        for name, tensor in tensors.items()
    }
    out = run_on(device, operator, leaves, **options)
    return with_gradients(out, leaves, layout(grad.to(device)).to(out.dtype))


def run_on(device, operator, tensors, path=None, autocast=None):
    """Output of an operator on a device; without ``path`` on the path that it chooses."""
    kind = torch.device(device).type
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    with ExitStack() as stack:
        if path:
            stack.enter_context(ops.use_path(path))
        if autocast:
            stack.enter_context(torch.autocast(kind, autocast))
        return call(getattr(ops, operator), operator, tensors)


def with_gradients(out, leaves, grad):
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    named = {f'gradient of {name}': g for name, g in zip(leaves, grads, strict=True)}
    return {'output': out.detach(), **named}


def call(function, operator, tensors):
    if operator != 'modulate':
        return function(*tensors.values())
    x, f_weight, f_bias, h_weight, h_bias, *kernels = tensors.values()
    return function(x, ops.ModulationWeights(f_weight, f_bias, tuple(kernels), h_weight, h_bias))


def make_tensors(operator, case, dtype):
    """Random input and weights of an operator on the CPU; outputs are about 1."""
    shape, *sizes = case
    channels = shape[1 if operator == 'embed_patches' else -1]
    weights = {
        name: torch.randn(size) / (3 if len(size) == 1 else math.prod(size[1:]) ** 0.5)
        for name, size in weight_shapes(operator, channels, *sizes).items()
    }
    return {name: t.to(dtype) for name, t in dict(x=torch.randn(shape), **weights).items()}


def weight_shapes(operator, channels, *sizes):
    if operator == 'modulate':
        levels, window = sizes
        rows = 2 * channels + levels + 1
        f, h = dict(f_weight=(rows, channels), f_bias=(rows,)), (channels, channels, 1, 1)
        kernels = [(channels, 1, size, size) for size in range(window, window + 2 * levels, 2)]
        kernels = {f'kernel {level}': size for level, size in enumerate(kernels)}
        return f | dict(h_weight=h, h_bias=(channels,)) | kernels
    if operator == 'layer_norm':
        return dict(weight=(channels,), bias=(channels,))
    outputs, *patch = sizes
    first = dict(weight=(outputs, channels, *patch * 2), bias=(outputs,))
    if operator == 'feed_forward':
        return first | dict(weight2=(channels, outputs), bias2=(channels,))
    return first


# Memory, streams and devices


def strided(path, device):
    """Slices of wider tensors, and permuted memory."""

    def slice_of_wider(tensor):
        return torch.cat([tensor, tensor.flip(-1)], -1)[..., : tensor.shape[-1]]

    def permuted(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    layouts = (slice_of_wider, permuted)
    options = dict(precision=Precision(), device=device, path=path)
    errors = [case_error('modulate', MODULATIONS[0], layout=f, **options) for f in layouts]
    return {'largest error': max(errors)}


def nan_memory(path, device):
    """No path reads memory that it has not written."""

    def filled(function):
        def fill(*args, **kwargs):
            tensor = function(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return fill

    owners = [(torch, 'empty'), (torch, 'empty_like'), (torch.Tensor, 'new_empty')]
    with ExitStack() as stack:
        for owner, name in owners:
            patch = mock.patch.object(owner, name, filled(getattr(owner, name)))
            stack.enter_context(patch)
        return {'error': case_error('modulate', MODULATIONS[0], Precision(), device, path=path)}


def equal_bits(path, device):
    tensors, grad, _ = expected_results('modulate', MODULATIONS[0], torch.float32)
    first, second = (results(device, 'modulate', tensors, grad, path=path) for _ in range(2))
    for name, tensor in first.items():
        if not torch.equal(tensor, second[name]):
            raise Wrong(f'{name}: the bits of two runs differ')


def several_streams(report, rounds=5):
    require_gpu(report)
    case = ((2, 57, 61, 24), 3, 9)
    inputs = [make_tensors('modulate', case, torch.float32) for _ in range(4)]
    inputs = [{name: t.to(report.device) for name, t in tensors.items()} for tensors in inputs]
    grads = [torch.randn_like(tensors['x']) for tensors in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    runs = list(zip(inputs, grads, strict=True))
    expected = [results(report.device, 'modulate', *given) for given in runs]
    largest = 0.0
    for _ in range(rounds):
        torch.cuda.synchronize()
        found = []
        for stream, given in zip(streams, runs, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(report.device, 'modulate', *given))
        torch.cuda.synchronize()
        errors = [largest_error(*both, FLOAT32) for both in zip(found, expected, strict=True)]
        largest = max(largest, *errors)
    return {'largest difference': largest}


def second_gpu():
    """Tensors on another GPU than the current one."""
    if torch.cuda.device_count() < 2:
        raise Skipped('it needs two GPUs')
    return {'error': case_error('modulate', MODULATIONS[0], Precision(), 'cuda:1')}


def require_gpu(report):
    if not report.on_gpu:
        raise Skipped('it needs a GPU')


# Backbones


def small_backbone(device):
    net = FocalNet(embed_dim=32, depths=(1, 1), focal_levels=3, focal_windows=9, drop_path_rate=0)
    net.init_weights()
    return net.to(device)


def backbone_results(net, x, function=None):
    """Features and all gradients."""
    outs = (net if function is None else function)(x)
    generator = torch.Generator().manual_seed(0)
    torch.autograd.backward(outs, [torch.randn(o.shape, generator=generator).to(o) for o in outs])
    named = {f'stage {i}': out.detach() for i, out in enumerate(outs)}
    return named | {f'gradient of {name}': p.grad.clone() for name, p in net.named_parameters()}


def backbone_against_float64(report):
    net, x = small_backbone('cpu'), torch.randn(2, 3, 72, 100)
    expected = backbone_results(net.double(), x.double())
    net.zero_grad()
    actual = backbone_results(net.float().to(report.device), x.to(report.device))
    return {'largest error': largest_error(actual, expected, BACKBONE)}


def cuda_graph(report):
    require_gpu(report)
    net = small_backbone(report.device).eval()
    x = torch.randn(2, 3, 72, 100, device=report.device)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                net(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = net(x)
        errors = []
        for _ in range(2):
            x.copy_(torch.randn_like(x))
            graph.replay()
            errors.append(
                largest_error(dict(enumerate(captured)), dict(enumerate(net(x))), FLOAT32)
            )
    return {'largest difference': max(errors)}


def compiled_backbone(report):
    if not report.on_gpu and not shutil.which('g++'):
        raise Skipped('torch.compile needs g++')
    net, x = small_backbone(report.device), torch.randn(2, 3, 72, 100, device=report.device)
    expected = backbone_results(net, x)
    net.zero_grad()
    try:
        actual = backbone_results(net, x, torch.compile(net))
    finally:
        torch._dynamo.reset()
    return {'largest difference': largest_error(actual, expected, BACKBONE)}


def large_tensors(report, height=4112, width=8192, channels=64):
    """Rows of a large modulation equal those of a small one, if nothing depends on all pixels."""
    require_gpu(report)
    if torch.cuda.mem_get_info()[0] < LARGE_BYTES:
        raise Skipped(f'it needs {LARGE_BYTES >> 30} GiB of free memory')
    if not can_run('modulate', 'triton', Precision(torch.bfloat16), report.device):
        raise Skipped('it needs Triton')
    levels, window, rows = 2, 3, 8
    reach = sum((window + 2 * level) // 2 for level in range(levels))
    weights = make_tensors('modulate', ((1, 1, 1, channels), levels, window), torch.bfloat16)
    # The gate of the global context is the last output of f.
    weights['f_weight'][-1], weights['f_bias'][-1] = 0, 0
    weights = {name: tensor.to(report.device) for name, tensor in weights.items()}
    x = torch.randn(1, height, width, channels, dtype=torch.bfloat16, device=report.device)
    errors = []
    with torch.no_grad():
        out = run_on(report.device, 'modulate', weights | dict(x=x), path='triton')
        for start in (0, height // 2, height - rows):
            first, last = max(start - reach, 0), min(start + rows + reach, height)
            crop = {name: t.float() for name, t in (weights | dict(x=x[:, first:last])).items()}
            expected = call(reference.modulate, 'modulate', crop)[:, start - first :][:, :rows]
            actual, name = out[:, start : start + rows], f'rows from {start}'
            limit = Precision(x.dtype).limit(name)
            errors.append(largest_error({name: actual}, {name: expected}, limit))
    return {'largest error': max(errors), 'elements': x.numel()}
