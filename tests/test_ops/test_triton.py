"""The Triton path, on a GPU if available, otherwise in Triton's interpreter on the CPU."""

import os
import subprocess
import sys
import types

import pytest
import torch
from operator_inputs import DIM, convert, make_weights, results

from mmfocalnet import ops
from mmfocalnet.ops import reference, triton_path
from mmfocalnet.ops.call import Call

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'


@pytest.mark.triton
@pytest.mark.skipif(DEVICE == 'cuda' or INTERPRETED, reason='the tests below run in this process')
def test_in_the_interpreter():
    # The interpreter of Triton 3.1 does not write results on the CPU.
    pytest.importorskip('triton', minversion='3.2')
    # In a subprocess: the variable must be set before triton is imported, and it makes other
    # tests on the CPU use this path.
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', '', __file__]
    result = subprocess.run(
        command, env={**os.environ, 'TRITON_INTERPRET': '1'}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def aggregate_reference(context, gates, kernels, normalize_modulator=False):
    total = reference.aggregate_context(context, gates, kernels)
    return total / (len(kernels) + 1) if normalize_modulator else total


def make(shape, channels, sizes):
    """A projection whose slices are context and gates, kernels, and a gradient."""
    projected = torch.randn(*shape, 2 * channels + len(sizes) + 1, device=DEVICE)
    kernels = [torch.randn(channels, 1, k, k, device=DEVICE) / k for k in sizes]
    return projected, kernels, torch.randn(*shape, channels, device=DEVICE)


def slices(projected, levels):
    channels = (projected.shape[-1] - levels - 1) // 2
    return projected.split((channels, channels, levels + 1), dim=-1)[1:]


def run(aggregate, projected, kernels, grad, **kwargs):
    """The result and the gradients of the projection and of every kernel."""
    projected = projected.detach().clone().requires_grad_()
    kernels = [kernel.detach().clone().requires_grad_() for kernel in kernels]
    result = aggregate(*slices(projected, len(kernels)), kernels, **kwargs)
    return [result.detach(), *torch.autograd.grad(result, [projected, *kernels], grad)]


def run_reference(projected, kernels, grad, **kwargs):
    double = [tensor.double() for tensor in (projected, grad, *kernels)]
    return run(aggregate_reference, double[0], double[2:], double[1], **kwargs)


def assert_close(actual, expected, tolerance=1e-5):
    for value, wanted in zip(actual, expected, strict=True):
        assert value.shape == wanted.shape
        error = (value.double() - wanted).abs().max()
        assert error <= tolerance * wanted.abs().max()  # False for NaN.


def on_device(tensor):
    return tensor.detach().to(DEVICE).requires_grad_()


def nan_filled(function):
    def fill(*args, **kwargs):
        tensor = function(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return fill


@pytest.mark.triton
class TestTriton:
    __test__ = DEVICE == 'cuda' or INTERPRETED

    @pytest.fixture(autouse=True)
    def _triton(self):
        pytest.importorskip('triton')

    @pytest.fixture(autouse=True)
    def _nan_memory(self, monkeypatch):
        """Fill new memory with NaN, so that elements that are never written become visible."""
        monkeypatch.setattr(torch, 'empty', nan_filled(torch.empty))
        monkeypatch.setattr(torch, 'empty_like', nan_filled(torch.empty_like))

    @pytest.mark.parametrize(
        ('shape', 'channels', 'sizes'),
        [
            ((2, 5, 7), 5, (3, 5, 7)),
            ((2, 5, 7), 5, ()),
            ((1, 1, 1), 5, (3, 5)),
            ((1, 1, 9), 40, (3, 5, 7)),
            ((1, 6, 1), 1, (1, 3)),
            ((1, 3, 2), 5, (13,)),  # Two programs for each row of taps.
            ((1, 1, 3), 3, (17,)),
            ((2, 2, 3), 72, (3,)),  # More than one block of channels.
            ((2, 3, 4), 24, (5,)),  # One group of four pixels per row; aligned to 8 channels.
            ((1, 9, 70), 16, (3,)),  # More than one tile.
        ],
        ids=str,
    )
    def test_output_and_gradients(self, shape, channels, sizes):
        case = make(shape, channels, sizes)
        actual = run(triton_path.aggregate, *case)
        assert actual[0].is_contiguous()
        assert_close(actual, run_reference(*case))

    def test_normalize_modulator(self):
        case = make((1, 2, 3), 5, (3, 5))
        actual = run(triton_path.aggregate, *case, normalize_modulator=True)
        assert_close(actual, run_reference(*case, normalize_modulator=True))

    @pytest.mark.parametrize('warps', triton_path.TILES)
    def test_every_tile(self, warps):
        case = make((2, 9, 33), 5, (3, 5))
        assert_close(run(triton_path.aggregate, *case, warps=warps), run_reference(*case))

    def test_gradients_of_kernels_over_several_chunks(self, monkeypatch):
        monkeypatch.setattr(triton_path, 'CHUNK', 64)
        case = make((2, 9, 9), 3, (3,))
        assert_close(run(triton_path.aggregate, *case), run_reference(*case))

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize('kernel_dtype', [None, torch.float32], ids=str)
    def test_low_precision(self, dtype, kernel_dtype):
        projected, kernels, grad = make((2, 3, 5), 5, (3, 5))
        projected, grad = projected.to(dtype), grad.to(dtype)
        kernels = [kernel.to(kernel_dtype or dtype) for kernel in kernels]
        actual = run(triton_path.aggregate, projected, kernels, grad)
        assert [value.dtype for value in actual] == [dtype] * 2 + [kernels[0].dtype] * 2
        # Sums are float32. On the way to the gradient of the context, both levels before GELU,
        # their gradients and the result are rounded: five times by at most one eps each, as the
        # interpreter rounds bfloat16 towards zero.
        tolerance = 5 * torch.finfo(dtype).eps
        assert_close(actual, run_reference(projected, kernels, grad), tolerance)

    @pytest.mark.parametrize('batch', [1, 2])
    def test_any_memory_layout(self, batch):
        context = torch.randn(batch, 5, 3, 4, device=DEVICE).permute(0, 2, 3, 1).requires_grad_()
        gates = torch.randn(batch, 1, 1, 2, device=DEVICE).expand(-1, 3, 4, -1).requires_grad_()
        kernels = [torch.randn(5, 1, 3, 3, device=DEVICE).transpose(2, 3).requires_grad_()]
        grad = torch.randn(5, 4, 3, batch, device=DEVICE).permute(3, 2, 1, 0)
        inputs = (context, gates, *kernels)
        total = triton_path.aggregate(context, gates, kernels)
        actual = [total, *torch.autograd.grad(total, inputs, grad)]
        double = [tensor.detach().double().requires_grad_() for tensor in inputs]
        total = aggregate_reference(double[0], double[1], double[2:])
        assert_close(actual, [total, *torch.autograd.grad(total, double, grad.double())])

    def test_frozen_kernels(self):
        projected, kernels, grad = make((1, 2, 3), 5, (3, 5))
        kernels[0].requires_grad_()
        projected.requires_grad_()
        result = triton_path.aggregate(*slices(projected, 2), kernels)
        actual = torch.autograd.grad(result, [projected, kernels[0]], grad)
        assert_close(actual, run_reference(projected, kernels, grad)[1:3])

    def test_results_are_bit_identical(self):
        case = make((1, 5, 7), 5, (3,))
        first, second = run(triton_path.aggregate, *case), run(triton_path.aggregate, *case)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_second_derivatives_are_refused(self):
        projected, kernels, grad = make((1, 2, 2), 5, (3,))
        projected.requires_grad_()
        result = triton_path.aggregate(*slices(projected, 1), kernels)
        with pytest.raises(RuntimeError, match='second derivatives'):
            torch.autograd.grad(result, projected, grad, create_graph=True)

    @pytest.mark.parametrize('options', [dict(normalize=True), dict(bias=False)], ids=str)
    @pytest.mark.parametrize('path', ['triton', 'triton_2', 'triton_8'])
    def test_modulate(self, path, options):
        weights = convert(make_weights(levels=1, **options), on_device)
        x = on_device(torch.randn(1, 3, 5, DIM))
        double = convert(weights, lambda tensor: on_device(tensor.double()))
        expected = results(reference.modulate, on_device(x.double()), double)
        with ops.use_path(path):
            assert_close(results(ops.modulate, x, weights), expected)

    def test_supported(self):
        assert triton_path.unsupported(Call((3,), device=DEVICE)) is None


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'device': 'cpu'}, 'cpu'),
        ({'device': 'mps'}, 'mps'),
        ({'dtype': torch.float64}, 'torch.float64'),
        ({'empty': True}, 'empty'),
        ({'tensor_type': 'FakeTensor'}, 'FakeTensor'),
    ],
    ids=str,
)
def test_reasons_against_triton(changes, reason, monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    call = Call((3,), device='cuda')
    assert reason in triton_path.unsupported(call._replace(**changes))


def test_triton_is_not_installed(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert 'pip install triton' in triton_path.unsupported(Call(device='cuda'))


@pytest.mark.triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter has no kernels that compilers can trace')
def test_compilers_see_the_kernels(monkeypatch):
    pytest.importorskip('triton')
    if not hasattr(torch.library, 'triton_op'):
        pytest.skip('PyTorch 2.6 and later trace Triton kernels')
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import default_partition
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    # The compiler reads the kernels for a GPU; nothing is run.
    target = types.SimpleNamespace(get_current_target=lambda: GPUTarget('cuda', 80, 32))
    monkeypatch.setattr(driver, '_active', target, raising=False)
    graphs = []

    class SeenError(Exception):
        pass

    def partition(graph, *args, **kwargs):
        graphs.append(graph)
        return default_partition(graph, *args, **kwargs)

    def stop(*args):
        raise SeenError

    projected, kernels, _ = make((1, 2, 3), 5, (3, 5))
    tensors = [*slices(projected, 2), *kernels]
    tensors = [tensor.contiguous().requires_grad_() for tensor in tensors]
    operator = torch.ops.mmfocalnet.aggregate_context_triton_4

    def function(context, *rest):
        return operator([context.unsqueeze(0), *rest], 1.0, True)[0]

    compiled = aot_function(function, fw_compiler=stop, partition_fn=partition)
    with pytest.raises(SeenError):
        compiled(*tensors)
    seen = [
        kernel_side_table.get_kernel(node.kwargs['kernel_idx']).fn.__name__
        for node in graphs[0].graph.nodes
        if 'kernel_idx' in node.kwargs
    ]
    assert sorted(seen) == [
        'combine',
        'context_backward',
        'gates_backward',
        'last_level_backward',
        'level_backward',
        'level_forward',
        'level_forward',
        'taps_backward',
        'taps_backward',
    ]
