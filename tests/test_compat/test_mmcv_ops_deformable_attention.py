"""Deformable attention in bounded memory: any chunks give the same numbers as no chunks.

test_mmcv_ops_on_gpus.py compares it with a reference by definition.
"""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfocalnet.compat.mmcv_ops import multi_scale_deform_attn
from mmfocalnet.compat.mmcv_ops.multi_scale_deform_attn import multi_scale_deformable_attn

SHAPES = [[6, 9], [3, 5], [1, 2]]
STEPS = [1, 3, 4, 11, 100]  # queries at a time


@pytest.fixture
def original():
    """The function of mmcv, which ours replaces."""
    module = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
    assert module.multi_scale_deformable_attn_pytorch is multi_scale_deformable_attn
    assert inspect.getmodule(module.mmcv_attention) is module
    return module.mmcv_attention


@pytest.fixture
def at_a_time(monkeypatch):
    """A function that sets the number of queries of a chunk for `random_inputs`."""

    def set_step(queries, batch=2):
        limit = queries * batch * 4 * 8 * 9
        monkeypatch.setattr(multi_scale_deform_attn, 'MAX_SAMPLES', limit)

    return set_step


def random_inputs(batch=2, queries=11, dtype=torch.float64):
    """Values of 4 heads and C=8; P=3 locations, some of them outside of the maps; weights."""
    value = torch.randn(batch, 71, 4, 8, dtype=dtype)
    locations = torch.rand(batch, queries, 4, 3, 3, 2, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(batch, queries, 4, 9, dtype=dtype).softmax(-1).unflatten(-1, (3, 3))
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def outputs(function, inputs, shapes):
    value, *others = inputs
    out = function(value, shapes, *others)
    torch.manual_seed(1)
    return out, *torch.autograd.grad(out, inputs, torch.randn_like(out))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('step', STEPS)
def test_equals_mmcv(step, dtype, original, at_a_time):
    inputs = random_inputs(dtype=dtype)
    expected = outputs(original, inputs, torch.tensor(SHAPES))
    at_a_time(step)
    for shapes in (SHAPES, torch.tensor(SHAPES)):
        found = outputs(multi_scale_deformable_attn, inputs, shapes)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        without = multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(without, expected[0], rtol=tolerance, atol=tolerance)


def test_gradcheck(at_a_time):
    at_a_time(2, batch=1)
    value, locations, weights = random_inputs(batch=1, queries=3)
    with torch.no_grad():  # away from the kinks between pixels
        for level, (height, width) in enumerate(SHAPES):
            size = torch.tensor([width, height])
            cells = (locations[:, :, :, level] * size).floor()
            locations[:, :, :, level] = (cells + 0.2) / size
    torch.autograd.gradcheck(
        lambda *inputs: multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:]),
        (value, locations, weights),
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('step', [2, 100])
def test_half_precision_computes_in_single(step, dtype, at_a_time):
    at_a_time(step)
    half = tuple(x.detach().to(dtype).requires_grad_() for x in random_inputs())
    single = tuple(x.detach().float().requires_grad_() for x in half)
    expected = outputs(multi_scale_deformable_attn, single, SHAPES)[0]
    with torch.autocast('cpu', torch.bfloat16):
        found = multi_scale_deformable_attn(half[0], SHAPES, *half[1:])
    assert torch.equal(found, expected.to(dtype))
    assert all(g.dtype == dtype for g in torch.autograd.grad(found.sum(), half))


class Largest(TorchDispatchMode):
    """Records the number of values of the largest tensor."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_no_tensor_is_larger_than_the_limit(at_a_time):
    """With 2000 queries, all samples are 576,000 values; the output and a map have fewer."""
    inputs = random_inputs(batch=1, queries=2000)
    biggest = max(x.numel() for x in inputs)
    for step, bound in ((10, biggest), (4000, 2000 * 4 * 8 * 3)):
        at_a_time(step, batch=1)
        with Largest() as largest:
            out = multi_scale_deformable_attn(inputs[0], SHAPES, *inputs[1:])
            out.sum().backward()
        assert largest.size == bound


def test_traces_have_no_chunks(at_a_time):
    at_a_time(2)
    value, *others = (x.detach() for x in random_inputs())

    def attend(value, locations, weights):
        return multi_scale_deformable_attn(value, SHAPES, locations, weights)

    traced = torch.jit.trace(attend, (value, *others))
    assert str(traced.graph).count('grid_sampler') == len(SHAPES)


COMPILED = """
import sys
from types import ModuleType

class Ops(ModuleType):
    def __getattr__(self, name):
        if name.startswith('_'):
            raise AttributeError(name)
        return print

sys.modules['mmcv._ext'] = Ops('mmcv._ext')
import {}
import {}
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
print(multi_scale_deformable_attn_pytorch.__module__)
"""


@pytest.mark.parametrize('order', [('mmcv.ops', 'mmfocalnet'), ('mmfocalnet', 'mmcv.ops')])
def test_replaces_mmcvs_in_either_order(order):
    """With compiled ops, mmcv.ops may have been imported before."""
    code = COMPILED.format(*order)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [multi_scale_deform_attn.__name__], done.stderr
