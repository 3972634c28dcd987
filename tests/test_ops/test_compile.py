"""The operators in compiled, exported and transformed code."""

import shutil
from functools import partial

import pytest
import torch
from operator_inputs import DIM, make_weights, needs_numba, tensors_of
from small_focalnet import small
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmfocalnet import ops
from mmfocalnet.models.layer_norm import normalize
from mmfocalnet.ops import layers, numba_path, pytorch_path

needs_custom_ops = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='PyTorch 2.4 and later compile the operators'
)
pytestmark = needs_custom_ops

X = (2, 9, 14, DIM)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def random(*shape):
    return torch.randn(*shape, requires_grad=True)


def inputs(operator):
    """Tensors of a fused operator."""
    weights = make_weights(levels=2)
    f_weight, f_bias, kernel0, kernel1, h_weight, h_bias = tensors_of(weights)
    return {
        'modulate': [
            random(*X), f_weight, f_bias, h_weight.detach().flatten(1), h_bias, kernel0, kernel1
        ],
        'aggregate_context': [random(*X), random(*X[:-1], 3), kernel0, kernel1],
        'linear': [random(*X), random(5, DIM), random(5)],
        'layer_norm': [random(*X), random(DIM), random(DIM)],
        'feed_forward': [random(*X), random(8, DIM), random(8), random(DIM, 8), random(DIM)],
        'embed_patches': [random(2, 6, 10, 3), random(5, 3, 2, 2), random(5)],
    }[operator]  # fmt: skip


OPERATORS = {
    'modulate': numba_path._modulate,
    'aggregate_context': pytorch_path._aggregate,
    'linear': layers._linear,
    'layer_norm': layers._layer_norm,
    'feed_forward': layers._feed_forward,
    'embed_patches': layers._embed_patches,
}
operators = pytest.mark.parametrize(
    'name', [pytest.param(n, marks=needs_numba if n == 'modulate' else ()) for n in OPERATORS]
)


@operators
@pytest.mark.parametrize('keep', [True, False])
def test_custom_operator_is_registered_correctly(name, keep):
    """Schema, fake implementation, autograd, and both with dynamic shapes."""
    x, *weights = inputs(name)
    op = getattr(torch.ops.mmfocalnet, name).default
    if not keep:
        x, weights = x.detach(), [weight.detach() for weight in weights]
    torch.library.opcheck(op, ([x.unsqueeze(0), *weights], 0.5, keep))


@operators
@pytest.mark.parametrize('frozen', [0, 1, -1])
def test_compiled_operator_equals_eager(name, frozen):
    tensors = inputs(name)
    tensors[frozen].requires_grad_(False)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    answers = []

    def function(*tensors):
        return OPERATORS[name](*tensors, constant=0.5)

    for run in (function, torch.compile(function, backend='aot_eager', fullgraph=True)):
        out = run(*tensors)
        answers.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for eager, compiled in zip(*answers, strict=True):
        assert torch.equal(eager, compiled)


class Recorder:
    """A compiler that records the fused operators of each graph and runs it as it is."""

    def __init__(self):
        self.graphs = []

    def __call__(self, module, example_inputs):
        from torch._dynamo.backends.common import aot_autograd

        return aot_autograd(fw_compiler=self._record)(module, example_inputs)

    def _record(self, module, example_inputs):
        targets = [str(node.target) for node in module.graph.nodes]
        self.graphs.append([t.split('.')[1] for t in targets if t.startswith('mmfocalnet.')])
        from functorch.compile import make_boxed_func

        return make_boxed_func(module.forward)


def answers_of(net, function, x, autocast=False):
    net.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        outs = function(x)
    sum(out.float().square().mean() for out in outs).backward()
    return [*outs, *(parameter.grad.clone() for parameter in net.parameters())]


@pytest.mark.parametrize(
    ('dynamic', 'use_checkpoint', 'autocast'),
    [
        (False, False, False),
        pytest.param(False, True, True, marks=pytest.mark.slow),
        pytest.param(True, False, False, marks=pytest.mark.slow),
        pytest.param(True, True, False, marks=pytest.mark.slow),
        pytest.param(True, False, True, marks=pytest.mark.slow),
    ],
)
def test_compiled_backbone_has_fused_operators_and_the_same_numbers(
    dynamic, use_checkpoint, autocast
):
    net = small(depths=(1, 1), use_checkpoint=use_checkpoint)
    record = Recorder()
    compiled = torch.compile(net, backend=record, fullgraph=True, dynamic=dynamic)
    for shape in ((2, 3, 32, 40), (3, 3, 48, 36)):
        x = torch.randn(shape)
        eager = answers_of(net, net, x, autocast)
        for expected, actual in zip(eager, answers_of(net, compiled, x, autocast), strict=True):
            assert torch.equal(expected, actual)
    forward, backward = record.graphs[:2]
    fused = 'aggregate_context' if autocast or not has_numba() else 'modulate'
    assert forward.count(fused) == 2
    assert backward.count(f'{fused}_backward') == 2
    if not autocast and has_numba():
        assert forward.count('feed_forward') == forward.count('linear') == 2
        assert forward.count('embed_patches') == 2


@pytest.mark.parametrize('training', [False, True])
def test_one_graph_serves_images_of_all_sizes(training):
    counter = CompileCounter()
    net = small(depths=(1, 1)).train(training)
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    for shape in ((1, 3, 64, 96), (1, 3, 96, 128), (1, 3, 128, 160), (1, 3, 160, 64)):
        with torch.set_grad_enabled(training):
            compiled(torch.randn(shape))
    assert counter.frame_count == 1


def has_numba():
    return not needs_numba.args[0]


def test_options_of_the_network_compile():
    net = small(
        depths=(1,),
        drop_rate=0.1,
        drop_path_rate=0.3,
        use_postln=True,
        use_layerscale=True,
        use_conv_embed=True,
        use_postln_in_modulation=True,
        normalize_modulator=True,
    ).eval()
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    x = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], net(x)[0])
    net.train()
    sum(out.sum() for out in compiled(x)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_layers_with_hooks_are_called_in_compiled_code():
    net = small(depths=(1,))
    block = net.layers[0].blocks[0]
    block.mlp.fc1.register_forward_hook(lambda layer, args, out: 2 * out)
    block.modulation.f.register_forward_hook(lambda layer, args, out: 2 * out)
    x = torch.randn(1, 3, 32, 40)
    compiled = torch.compile(net, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], net(x)[0])


def test_a_requested_path_is_that_of_the_compiled_code():
    net = small(depths=(1,))
    record = Recorder()
    with ops.use_path('reference'):
        torch.compile(net, backend=record, fullgraph=True)(torch.randn(1, 3, 32, 40))
    assert record.graphs[0] == []


def test_layer_norm_without_weights():
    norm = nn.LayerNorm(DIM, elementwise_affine=False)
    x = torch.randn(X)
    compiled = torch.compile(partial(normalize, norm), backend='aot_eager', fullgraph=True)
    assert torch.equal(compiled(x), norm(x))


def test_layer_norm_of_other_precisions():
    norm = nn.LayerNorm(DIM).double()
    x = torch.randn(X, dtype=torch.float64)
    record = Recorder()
    actual = torch.compile(partial(normalize, norm), backend=record, fullgraph=True)(x)
    assert torch.equal(actual, nn.functional.layer_norm(x, (DIM,)))
    assert record.graphs[0] == []


@pytest.mark.parametrize('strict', [False, True])
def test_exported_programs_contain_operators_of_pytorch_only(strict):
    net = small(depths=(1,), drop_path_rate=0.1).eval()
    x = torch.randn(1, 3, 32, 40)
    program = torch.export.export(net, (x,), strict=strict)
    assert 'mmfocalnet' not in str(program.graph)
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


def test_transforms_of_torch_func_compile():
    weights = make_weights(levels=2)
    x = torch.randn(3, *X)

    def function(x):
        return ops.modulate(x, weights)

    mapped = torch.compile(torch.func.vmap(function), backend='aot_eager')(x)
    separate = torch.stack([function(one) for one in x])
    torch.testing.assert_close(mapped, separate, rtol=0, atol=1e-5 * separate.abs().max().item())
    gradient = torch.func.grad(lambda x: function(x).square().sum())
    actual = torch.compile(gradient, backend='aot_eager')(x[0])
    torch.testing.assert_close(actual, gradient(x[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which('g++') is None, reason='Inductor needs a C++ compiler')
@pytest.mark.parametrize(
    ('dynamic', 'autocast', 'rounding'),
    [(False, False, 1e-5), (True, False, 1e-5), (True, True, 1e-1)],
)
def test_inductor_gives_the_same_numbers(dynamic, autocast, rounding):
    net = small(depths=(1, 1))
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic)
    for shape in ((2, 3, 32, 40), (3, 3, 48, 36)):
        x = torch.randn(shape)
        eager = answers_of(net, net, x, autocast)
        for expected, actual in zip(eager, answers_of(net, compiled, x, autocast), strict=True):
            atol = rounding * expected.abs().max().item() + 1e-7
            torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
