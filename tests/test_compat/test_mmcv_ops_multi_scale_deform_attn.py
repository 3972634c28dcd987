"""Deformable attention in chunks, against mmcv's function; test_mmcv_ops_on_gpus.py has the ops."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stacks import FLOAT16, compiles_strict_zip
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmfocalnet.compat import ensure_mmcv_ops
from mmfocalnet.compat.mmcv_ops import multi_scale_deform_attn
from mmfocalnet.compat.mmcv_ops.multi_scale_deform_attn import multi_scale_deformable_attn

ensure_mmcv_ops()
mmcv_attention = importlib.import_module('mmcv.ops.multi_scale_deform_attn')

NAME = 'multi_scale_deformable_attn_pytorch'
ROOT = Path(__file__).parents[2]
SHAPES = [(6, 9), (3, 5), (1, 2)]


mmcv_function = mmcv_attention.mmcv_attention


def test_the_function_to_compare_with_is_that_of_mmcv():
    assert mmcv_function.__module__ == mmcv_attention.__name__


def random_inputs(shapes=SHAPES, batch=2, queries=11, dtype=torch.float32):
    """Values of 4 heads with C=8, locations with P=3, some outside the maps, and weights."""
    size, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(batch, size, 4, 8, dtype=dtype)
    locations = torch.rand(batch, queries, 4, levels, 3, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(batch, queries, 4, levels, 3, dtype=dtype)
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def outputs(function, inputs, shapes=SHAPES):
    """The output and the gradients of the inputs, for a fixed gradient of the output."""
    value, *others = inputs
    out = function(value, torch.tensor(shapes), *others)
    generator = torch.Generator().manual_seed(0)
    out_grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    needed = [x for x in inputs if x.requires_grad]
    return out, *torch.autograd.grad(out, needed, out_grad)


def assert_equal(ours, expected):
    for values, references in zip(ours, expected, strict=True):
        # Relative to the largest, because sums of both signs cancel.
        error = (values - references).abs().max() / references.abs().max()
        assert error < (1e-12 if values.dtype == torch.float64 else 1e-5)
        assert values.dtype == references.dtype and values.shape == references.shape


@pytest.fixture(params=[1, 3, 4, 11, 100])
def queries_per_chunk(request, monkeypatch):
    """For a batch of two: chunks of one query, with and without a rest, and a single one."""
    elements = request.param * 2 * 4 * 8 * 3
    monkeypatch.setattr(multi_scale_deform_attn, '_CHUNK_ELEMENTS', elements)
    return request.param


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('shapes', [SHAPES, [(5, 7)]])
def test_output_and_gradients_equal_mmcv(queries_per_chunk, shapes, dtype):
    inputs = random_inputs(shapes, dtype=dtype)
    assert_equal(
        *(outputs(f, inputs, shapes) for f in (multi_scale_deformable_attn, mmcv_function))
    )


def test_one_image_equals_mmcv(queries_per_chunk):
    """Without a copy of its values."""
    inputs = random_inputs(batch=1)
    assert_equal(*(outputs(f, inputs) for f in (multi_scale_deformable_attn, mmcv_function)))


@pytest.mark.parametrize('needed', [0, 1, 2])
def test_gradient_of_one_input_equals_mmcv(needed):
    inputs = [x.detach().requires_grad_(i == needed) for i, x in enumerate(random_inputs())]
    assert_equal(*(outputs(f, inputs) for f in (multi_scale_deformable_attn, mmcv_function)))


def test_sizes_can_be_lists():
    value, *others = random_inputs()
    out, expected = (
        multi_scale_deformable_attn(value, shapes, *others)
        for shapes in (SHAPES, torch.tensor(SHAPES))
    )
    assert torch.equal(out, expected)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(multi_scale_deform_attn, '_CHUNK_ELEMENTS', 2 * 2 * 4 * 8 * 3)
    inputs = random_inputs(queries=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda value, *others: multi_scale_deformable_attn(value, SHAPES, *others),
        inputs,
        fast_mode=True,
    )


# Precision


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('other_dtype', [None, torch.float32])
@pytest.mark.parametrize('dtype', [FLOAT16, torch.bfloat16])
def test_half_precision_computes_in_float32(queries_per_chunk, dtype, other_dtype, autocast):
    """Also if, as in mixed precision, only the values have half precision."""
    value, *others = (x.detach().to(dtype) for x in random_inputs())
    inputs = [x.requires_grad_() for x in (value, *(x.to(other_dtype or dtype) for x in others))]
    single = [x.detach().float().requires_grad_() for x in inputs]
    # The gradient of the output is rounded to half precision.
    with torch.autocast('cpu', dtype, enabled=autocast):
        out = multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:])
    expected = multi_scale_deformable_attn(single[0], SHAPES, *single[1:])
    out_grad = torch.randn(out.shape).to(dtype)
    grads = torch.autograd.grad(out, inputs, out_grad)
    expected_grads = torch.autograd.grad(expected, single, out_grad.float())
    for x, reference in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert torch.equal(x, reference.to(x.dtype)), 'rounded once'
    assert [x.dtype for x in (out, *grads)] == [dtype, *(x.dtype for x in inputs)]


def test_autocast_keeps_float32():
    inputs = random_inputs()
    expected = outputs(multi_scale_deformable_attn, inputs)
    with torch.autocast('cpu', torch.bfloat16):
        assert all(map(torch.equal, outputs(multi_scale_deformable_attn, inputs), expected))


# Memory


class Recorder(TorchDispatchMode):
    """Records the operators called and the numbers of elements (of float32) that they allocate."""

    def __init__(self):
        super().__init__()
        self.called, self.allocated = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = set(map(storage, tensors_of((args, kwargs))))
        new = {storage(x): x.untyped_storage().nbytes() // 4 for x in tensors_of(result)}
        self.allocated += [new[key] for key in new.keys() - known]
        self.called.append(function.overloadpacket)
        return result


def tensors_of(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def recorded(function, value, locations, weights):
    with Recorder() as recorder:
        out = function(value, SHAPES, locations, weights)
        if out.requires_grad:
            out.sum().backward()
    return recorder


@pytest.mark.parametrize('grad', [False, True])
def test_temporary_tensors_have_the_size_of_a_chunk(monkeypatch, grad):
    inputs = [x.detach().requires_grad_(grad) for x in random_inputs(queries=700)]
    samples_of_a_query = 2 * 4 * 8 * 3
    chunk = 20 * samples_of_a_query
    monkeypatch.setattr(multi_scale_deform_attn, '_CHUNK_ELEMENTS', chunk)
    ours, theirs = (recorded(f, *inputs) for f in (multi_scale_deformable_attn, mmcv_function))
    output = 2 * 700 * 4 * 8
    grads = [x.numel() for x in inputs if grad]
    assert sorted(x for x in ours.allocated if x > chunk) == sorted([output, *grads])
    assert max(theirs.allocated) == 700 * samples_of_a_query * len(SHAPES)
    assert ours.called.count(torch.ops.aten.grid_sampler_2d) == 700 // 20 * 3 * (1 + grad)


def test_backward_keeps_the_inputs_only():
    inputs, saved = random_inputs(), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:])
    assert [x.data_ptr() for x in saved] == [x.data_ptr() for x in inputs]


def test_sizes_of_levels_are_read_once(monkeypatch):
    """Each number read from a tensor would synchronize a GPU."""
    read = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda x: read.append(x) or to_list(x))
    inputs = random_inputs()
    with Recorder() as recorder:
        outputs(multi_scale_deformable_attn, inputs)
    assert len(read) == 1
    assert torch.ops.aten._local_scalar_dense not in recorder.called


# Graphs


def attend(value, locations, weights):
    return multi_scale_deformable_attn(value, SHAPES, locations, weights)


def compiled(inputs):
    return torch.compile(attend, backend='aot_eager', fullgraph=True)


def traced(inputs):
    return torch.jit.trace(attend, inputs, check_trace=False)


def exported(inputs):
    module = torch.nn.Module()
    module.forward = attend
    return torch.export.export(module, inputs).module()


@pytest.mark.filterwarnings('ignore:.torch.jit.trace. is deprecated')
@pytest.mark.parametrize(
    'record',
    [
        pytest.param(compiled, marks=compiles_strict_zip),
        traced,
        pytest.param(exported, marks=compiles_strict_zip),
    ],
)
def test_graphs_have_one_chunk_and_plain_gradients(monkeypatch, record):
    inputs = random_inputs()
    expected = outputs(mmcv_function, inputs)
    monkeypatch.setattr(multi_scale_deform_attn, '_CHUNK_ELEMENTS', 1)
    monkeypatch.setattr(multi_scale_deform_attn, '_Attention', None)
    monkeypatch.setattr(multi_scale_deform_attn, '_forward', None)
    function = record(inputs)
    assert_equal(outputs(lambda value, _, *others: function(value, *others), inputs), expected)


# mmcv


# Has each op, as a compiled one.
COMPILED = """
import sys, types
class Ops(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return print
sys.modules['mmcv._ext'] = Ops('mmcv._ext')
"""
BEFORE = 'import mmcv.ops, mmfocalnet'
AFTER = """
import mmfocalnet, sys
assert 'mmcv.ops' not in sys.modules
import mmcv.ops
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    'code',
    [
        pytest.param(AFTER, id='not compiled'),
        pytest.param(COMPILED + AFTER, id='compiled'),
        pytest.param(COMPILED + BEFORE, id='compiled, imported before'),
    ],
)
def test_mmcv_calls_our_function(code):
    """Without compiled ops, mmcv.ops cannot be imported before."""
    code += f'\nprint(sys.modules["mmcv.ops.multi_scale_deform_attn"].{NAME}.__module__)'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == multi_scale_deform_attn.__name__


def test_module_of_mmcv_is_equal_with_either_function(monkeypatch):
    module = mmcv_attention.MultiScaleDeformableAttention(
        32, num_heads=4, num_levels=3, num_points=3, dropout=0.0, batch_first=True
    )
    queries = sum(math.prod(shape) for shape in SHAPES)
    query = torch.randn(2, queries, 32, requires_grad=True)
    points = torch.rand(2, queries, 3, 2)

    def outputs_of_module():
        out = module(query, reference_points=points, spatial_shapes=torch.tensor(SHAPES))
        return out, *torch.autograd.grad(out.square().sum(), (query, *module.parameters()))

    assert getattr(mmcv_attention, NAME) is multi_scale_deformable_attn
    ours = outputs_of_module()
    monkeypatch.setattr(mmcv_attention, NAME, mmcv_function)
    torch.testing.assert_close(ours, outputs_of_module(), rtol=1e-5, atol=1e-5)
