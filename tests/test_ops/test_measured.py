"""The path that is chosen by measurement, on the CPU instead of a GPU."""

import json
import threading

import pytest
import torch
from operator_inputs import DIM, assert_close, make_weights, needs_numba, results
from recorded_paths import recorded

from mmfocalnet import ops
from mmfocalnet.models import FocalNet
from mmfocalnet.ops import dispatch, measured, reference

SHAPE = (1, 9, 14, DIM)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Measure on the CPU, and keep the times in a temporary folder; return a function to forget."""

    def forget():
        measured._chosen.clear()
        measured._table.cache_clear()

    monkeypatch.setattr(measured, 'DEVICES', ('cpu',))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    forget()
    yield forget
    forget()


@pytest.fixture
def times(monkeypatch):
    """Milliseconds that each path is measured to take; ``measured`` lists the paths measured."""

    class Table(dict):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.measured = []

    table = Table(numba=9.0, pytorch=8.0, channels_first=7.0, fourier=6.0, reference=5.0)

    def milliseconds(path, x, weights):
        table.measured.append(path.name)
        return table[path.name]

    monkeypatch.setattr(measured, '_milliseconds', milliseconds)
    return table


@pytest.fixture
def ran(monkeypatch):
    """Names of the paths that ran."""
    names = []

    def fastest(*args):
        path = original(*args)
        return path and recorded(path, names)

    original = measured.fastest
    monkeypatch.setattr(measured, 'fastest', fastest)
    return names


def call(shape=SHAPE, **kwargs):
    return ops.modulate(torch.randn(*shape), make_weights(**kwargs))


def frozen_kernels():
    weights = make_weights()
    return weights._replace(kernels=tuple(kernel.detach() for kernel in weights.kernels))


@pytest.mark.parametrize('name', ['pytorch', 'channels_first', 'fourier', 'reference'])
def test_the_fastest_path_runs(name, times, ran):
    times[name] = 0.5
    call()
    assert ran == [name]


def test_each_kind_is_measured_once(times, cache):
    def count(function):
        times.measured.clear()
        function()
        return len(times.measured) > 0

    assert count(call)
    assert not count(call)
    assert not count(lambda: call((2, 8, 8, DIM))), '128 pixels, as 126 are rounded to'
    assert count(lambda: call((2, 9, 14, DIM))), 'other pixels'
    assert count(lambda: call(window=5)), 'other kernels'
    with torch.no_grad():
        assert count(call), 'without gradients'
    assert count(lambda: ops.modulate(torch.randn(SHAPE), frozen_kernels())), 'frozen kernels'
    assert count(
        lambda: ops.modulate(torch.randn(SHAPE).double(), make_weights(dtype=torch.double))
    )
    with torch.autocast('cpu', torch.bfloat16):
        assert count(call), 'autocast'
    cache()
    assert not count(call), 'the times are read from the file'


def test_times_of_other_paths_are_measured_again(times, cache, tmp_path):
    call()
    (file,) = tmp_path.glob('mmfocalnet/*.json')
    table = json.loads(file.read_text())
    ((kind, found),) = table.items()
    assert 'training' in kind and set(found) <= set(ops.PATHS)
    del found['fourier']
    file.write_text(json.dumps(table))
    cache()
    times.measured.clear()
    call()
    assert 'fourier' in times.measured


@needs_numba
def test_noise_does_not_replace_the_first_path(times, ran):
    times.update(dict.fromkeys(times, 11.0), numba=10.0, reference=9.6)
    call()
    assert ran == ['numba']


DAMAGED = [
    '{"a": {"b": -1}}',
    '',
    '[]',
    '{"a": 1}',
    '{"a": {"b": "c"}}',
    '{"a": {"b": null}}',
    '\x00',
    '[' * 100_000,
]


@pytest.mark.parametrize('text', [*DAMAGED, f'{{"a": {{"b": {"9" * 400}}}}}', '{"a": {"b": NaN}}'])
def test_damaged_files_are_replaced(text, times, cache, tmp_path):
    call()
    (file,) = tmp_path.glob('mmfocalnet/*.json')
    expected = file.read_text()
    file.write_text(text)
    cache()
    call()
    assert file.read_text() == expected


def test_processes_keep_the_times_of_others(times, cache, tmp_path):
    call()
    first = dict(measured._table('cpu'))
    cache()
    measured._table('cpu').clear()  # as if it had started before the other one wrote
    call((1, 40, 40, DIM))
    (file,) = tmp_path.glob('mmfocalnet/*.json')
    assert json.loads(file.read_text()).keys() > first.keys()


def test_folders_that_cannot_be_written_are_ignored(times, monkeypatch, tmp_path, ran):
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(file))
    call()
    assert ran == ['reference']


def test_failed_paths_are_tried_again_in_the_next_process(times, cache, ran):
    times['reference'] = None
    call()
    times['reference'] = 5.0
    call()
    assert ran == ['fourier', 'fourier']
    cache()
    call()
    assert ran[2:] == ['reference']


def test_without_any_time_the_first_path_runs(times, ran):
    for name in times:
        times[name] = None
    assert call().isfinite().all()
    assert ran == []


@pytest.mark.parametrize('setting', ['algorithms', 'cudnn'])
def test_reproducible_runs_do_not_measure(setting, times, monkeypatch):
    if setting == 'cudnn':
        monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    else:
        torch.use_deterministic_algorithms(True)
    try:
        call()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not times.measured


def test_requested_paths_are_not_measured(times):
    with ops.use_path('channels_first'):
        call()
    assert not times.measured


def test_compiled_code_is_not_measured(times):
    weights = make_weights()
    compiled = torch.compile(lambda x: ops.modulate(x, weights), backend='eager')
    compiled(torch.randn(SHAPE))
    assert not times.measured


def test_captured_graphs_are_not_measured(times, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    call()
    assert not times.measured


def test_explain_lists_the_times(times):
    times['fourier'] = None
    call(levels=2)
    *_, path, line = ops.explain(SHAPE, focal_window=3, focal_level=2).splitlines()
    assert path.endswith('where nothing is measured')
    kind = f'{DIM} channels, kernels 3 5, 128 pixels, float32, training'
    assert line.startswith(f'reference: runs for {kind} (reference 5 ms, ')
    assert line.endswith('fourier failed)')
    assert 'measured' not in ops.explain(SHAPE, focal_window=5, focal_level=2)


# Without replaced times


def test_measuring_changes_nothing():
    weights, x = make_weights(), torch.randn(SHAPE, requires_grad=True)
    expected = results(reference.modulate, x, weights)
    state = torch.get_rng_state()
    hooks = []
    x.register_hook(hooks.append)
    out = ops.modulate(x, weights)
    assert measured._chosen
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None and all(kernel.grad is None for kernel in weights.kernels)
    assert not hooks
    assert_close([expected[0].double()], [out], 1e-5)
    assert_close([tensor.double() for tensor in expected], results(ops.modulate, x, weights), 1e-4)


@pytest.mark.parametrize('training', [False, True])
def test_gradients_are_timed_if_they_are_needed(training, monkeypatch):
    counts = dict(forward=0, backward=0)

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            counts['forward'] += 1
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            counts['backward'] += 1
            return grad

    first, *others = dispatch.MODULATION

    def run(x, weights):
        return Counted.apply(reference.modulate(x, weights))

    monkeypatch.setattr(dispatch, 'MODULATION', (first, *(p._replace(run=run) for p in others)))
    with torch.set_grad_enabled(training):
        call()
    timed = counts['forward'] - 1
    assert timed > measured.RUNS
    assert counts['backward'] == (timed if training else 0)


def test_threads_measure_once(times):
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times.measured) == len(set(times.measured))


def test_inputs_that_no_path_supports_leave_no_times(cache, tmp_path):
    weights = make_weights(dtype=torch.float64)
    with pytest.raises(RuntimeError, match='dtype'):
        ops.modulate(torch.randn(SHAPE), weights)
    assert not measured._chosen and not list(tmp_path.glob('mmfocalnet/*'))


def test_detecting_anomalies_does_not_disturb():
    with torch.autograd.set_detect_anomaly(True):
        ops.modulate(torch.full(SHAPE, torch.nan), make_weights())
    (times,) = measured._table('cpu').values()
    assert None not in times.values()


def test_a_path_that_raises_is_skipped(monkeypatch):
    def fail(x, weights):
        raise RuntimeError('out of memory')

    first, *others = dispatch.MODULATION
    paths = (first, *(path._replace(run=fail) for path in others[:-1]), others[-1])
    monkeypatch.setattr(dispatch, 'MODULATION', paths)
    assert call().isfinite().all()
    (times,) = measured._table('cpu').values()
    assert times['reference'] > 0 and times['fourier'] is None


def test_activation_checkpointing():
    torch.manual_seed(0)
    arch = dict(embed_dim=8, depths=(1, 1), focal_levels=2, focal_windows=3, drop_path_rate=0)
    plain, recomputed = FocalNet(**arch), FocalNet(**arch, use_checkpoint=True)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    grads = []
    for net in (recomputed, plain):
        sum(out.square().sum() for out in net(x)).backward()
        grads.append([parameter.grad for parameter in net.parameters()])
    assert measured._chosen
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected)
