"""tools/benchmark.py: the tables it prints and the plot it draws, for small sizes."""

import argparse
import gc
import importlib.util
import logging
import sys
from pathlib import Path

import pytest
import torch

from mmfocalnet import FocalNet
from mmfocalnet.deployment.runtimes import InputInfo
from mmfocalnet.errors import UserError
from mmfocalnet.inference.predictor import random_predictor

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
ARGS = argparse.Namespace(device='cpu', amp=False, compile=False, threads=1)
SMALL = dict(embed_dim=4, depths=(1, 1), focal_levels=1, focal_windows=3)


@pytest.fixture
def benchmarking(monkeypatch):
    """The modules of the tool. Networks are measured in this process."""
    monkeypatch.syspath_prepend(TOOLS)
    names = ('detectors', 'exported', 'loading', 'measuring', 'networks', 'tables', 'timing')
    modules = {name: importlib.import_module(f'benchmarking.{name}') for name in names}
    # A separate process for each row takes seconds, as do large matrices.
    monkeypatch.setattr(modules['tables'], 'peak_memory', lambda *args: 10.0)
    monkeypatch.setattr(modules['timing'], 'MATRIX_SIZE', dict(cpu=64))
    monkeypatch.setattr(modules['timing'], 'COPIED_FLOATS', 64)
    monkeypatch.setattr(modules['loading'], 'IMAGES', 2)
    return argparse.Namespace(**modules)


@pytest.fixture
def main(benchmarking, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('benchmark', TOOLS / 'benchmark.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def _main(*args):
        threads = torch.get_num_threads()
        monkeypatch.setenv('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '')  # the tool sets it
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *args])
        try:
            tool.main()
        finally:
            torch.set_num_threads(threads)
            logging.disable(logging.NOTSET)
        return capsys.readouterr().out

    return _main


@pytest.fixture
def keep_rows(benchmarking, monkeypatch):
    """Limit the backbones to some rows, and ours to a small network."""
    monkeypatch.setattr(benchmarking.networks, 'TINY', SMALL)
    backbones = benchmarking.networks.backbones

    def _keep_rows(*names):
        monkeypatch.setattr(
            benchmarking.measuring,
            'backbones',
            lambda args: {name: row for name, row in backbones(args).items() if name in names},
        )

    return _keep_rows


def first_cells(out):
    return [line.split('|')[1].strip() for line in out.splitlines() if line.startswith('| ')]


def test_the_published_layout_is_the_same_network(benchmarking):
    torch.manual_seed(0)
    net = FocalNet(embed_dim=8, depths=(1, 1), focal_levels=2, focal_windows=3).eval()
    x = torch.randn(1, 3, 40, 48)
    expected = net(x)
    calls = []
    layout = benchmarking.networks.algorithm_1
    benchmarking.networks.algorithm_1 = lambda *args: calls.append(1) or layout(*args)
    for out, wanted in zip(benchmarking.networks.as_published(net)(x), expected, strict=True):
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2


def test_operator(main):
    pytest.importorskip('numba')
    out = main('operator', '--size', '32', '40', '--dim', '4', '--rounds', '1')
    names = ('numba', 'pytorch', 'channels_first', 'fourier', 'reference')
    rows = ['mmfocalnet', *(f'mmfocalnet, {path} path' for path in names)]
    assert first_cells(out)[-len(rows) :] == rows


def test_backbone(main, keep_rows):
    kept = ('published layout', 'mmfocalnet', 'mmfocalnet, use_checkpoint')
    keep_rows(*kept)
    out = main('backbone', '--size', '32', '40', '--rounds', '1')
    assert first_cells(out)[-3:] == list(kept)
    assert 'x floor' in out and 'first call' not in out and 'GFLOP/s' in out


@pytest.mark.triton
def test_kernels(main):
    pytest.importorskip('triton')
    out = main('kernels')
    assert first_cells(out).count('taps_backward') == 3
    assert 'H100' in out and '20.6 GMAC of depth-wise' in out


@pytest.mark.triton
@pytest.mark.parametrize('channels', [24, 40, 96, 192])
def test_kernels_load_vectors_into_registers(benchmarking, channels):
    pytest.importorskip('triton')
    kernels = importlib.import_module('benchmarking.kernels')
    for launch in kernels.launches(channels, (3, 5), torch.bfloat16):
        cost = kernels.cost(kernels.compile_kernel(launch, 80))
        assert cost.spilled == 0
        if 'K' in launch.constants:
            # Eight values per load, which serves up to four products.
            assert 0 < cost.per_product('LDG') < 0.2
            assert cost.per_product() < 4


@pytest.mark.slow
def test_compiled_backbone(main, keep_rows):
    kept = ('mmfocalnet', 'mmfocalnet, torch.compile')
    keep_rows(*kept)
    out = main('backbone', '--compile', '--size', '32', '40', '--rounds', '1')
    assert first_cells(out)[-2:] == list(kept) and 'first call, s' in out


def test_flops_are_those_of_one_forward_pass_on_any_path(benchmarking):
    model = torch.nn.Conv2d(3, 8, 1)
    network = benchmarking.networks.Network(model, model, ARGS)
    assert network.count_flops(network.inputs((2, 3, 4, 5))) == (2 * 2 * 20 * 3 * 8,) * 2


def test_floors_are_three_times_as_long_in_training(benchmarking):
    times = benchmarking.measuring.Times(0.0, {}, {}, (100, 200))
    assert times.floors(argparse.Namespace(rate=50)) == (2, 12)


def test_a_phase_does_not_include_the_phases_inside_it(benchmarking, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(benchmarking.timing, 'now', lambda device: next(clock))
    phases = benchmarking.timing.Phases('cpu')
    module = argparse.Namespace(inner=lambda: None)
    module.outer = lambda: (module.inner(), module.inner())
    phases.wrap(module, 'inner', 'inner')
    phases.wrap(module, 'outer', 'outer')
    module.outer()
    assert phases.seconds == dict(inner=2, outer=3)


NARROW = dict(embed_dim=8, depths=(1, 1, 1, 1), drop_path_rate=0), (8, 16, 32, 64)
BACKWARD = ['backward of heads and neck', 'backward of the backbone', 'optimizer']
TRAINING = dict(
    mask_rcnn=['neck', 'RPN', 'box head', 'mask head', *BACKWARD],
    atss=['neck', 'head', *BACKWARD],
    upernet=['head', 'auxiliary head', *BACKWARD],
)


@pytest.mark.parametrize(
    'name', ['atss', *(pytest.param(n, marks=pytest.mark.slow) for n in ('mask_rcnn', 'upernet'))]
)
def test_phases_of_a_detector(benchmarking, monkeypatch, name):
    monkeypatch.setitem(benchmarking.detectors.BACKBONES, 'FocalNet-T', NARROW)
    detector = benchmarking.detectors.make_detector(name, 'FocalNet-T', ARGS)
    data = detector.inputs((2, 3, 64, 64))
    before = [p.clone() for p in detector.model.backbone.parameters()]
    detector.phases.seconds.clear()
    detector.step(data)
    assert set(detector.phases.seconds) == {'preprocessing', 'backbone', *TRAINING[name]}
    assert all(p.grad is None for p in detector.model.parameters())  # by the optimizer's wrapper
    assert all(map(torch.equal, before, detector.model.backbone.parameters()))
    detector.phases.seconds.clear()
    found = detector.predict(data)
    assert not set(detector.phases.seconds) & set(BACKWARD)
    if name != 'upernet':
        assert len(found[0].pred_instances) >= 90


def test_the_backward_pass_is_split_where_that_of_the_backbone_starts(benchmarking, monkeypatch):
    monkeypatch.setitem(benchmarking.detectors.BACKBONES, 'FocalNet-T', NARROW)
    detector = benchmarking.detectors.make_detector('atss', 'FocalNet-T', ARGS)
    events = []
    norms = detector.model.backbone.norm1, detector.model.backbone.norm3
    for norm in norms:
        norm.weight.register_hook(lambda grad: events.append('backbone'))
    detector.model.neck.lateral_convs[0].conv.weight.register_hook(lambda _: events.append('neck'))
    monkeypatch.setattr(benchmarking.detectors, 'now', lambda device: events.append('now') or 0.0)
    detector.step(detector.inputs((2, 3, 64, 64)))
    assert events == ['now', 'neck', 'now', 'backbone', 'backbone', 'now']


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINING)
def test_detector(main, name):
    out = main('detector', '--model', name, '--size', '64', '64', '--rounds', '1')
    cells = first_cells(out)
    assert all(backbone in out for backbone in ('FocalNet-T', 'Swin-T', 'R-50'))
    assert cells.count('x floor') == cells.count('backbone') == 2
    assert [cell for cell in cells if cell in TRAINING[name]][-len(BACKWARD) :] == BACKWARD


def test_pipelines_are_timed_step_by_step(benchmarking, shapes):
    loading = benchmarking.loading
    for name, last in (('mask_rcnn', 'PackDetInputs'), ('upernet', 'PackSegInputs')):
        taken = loading.pipeline_seconds(loading.training_set(name, shapes))
        assert [*taken][:3] == ['read annotations', 'SeedSample', 'LoadImageFromFile']
        assert [*taken][-1] == last and all(value >= 0 for value in taken.values())


@pytest.mark.slow
def test_loader(main, benchmarking, monkeypatch):
    monkeypatch.setitem(benchmarking.detectors.BACKBONES, 'FocalNet-T', NARROW)
    out = main('loader', '--size', '64', '64', '--rounds', '1')
    assert {'LoadAnnotations', 'PackDetInputs', 'PackSegInputs'} <= set(out.split())
    assert first_cells(out)[-2:] == ['mask_rcnn', 'upernet']


def test_loader_without_data(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main('loader', '--data-root', str(tmp_path))
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert '--data-root' in err and str(tmp_path / 'coco/annotations') in err


@pytest.mark.export
def test_exported(main, run, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    config = TOOLS.parent / 'configs/demo/atss.py'
    checkpoint, file = tmp_path / 'model.pth', tmp_path / 'model.onnx'
    torch.save(random_predictor(config).model.state_dict(), checkpoint)
    flags = ['--out', str(file), '--size', '64', '96']
    run(sys.executable, 'tools/export.py', str(config), str(checkpoint), *flags)
    monkeypatch.setattr(torch, 'compile', lambda model: model)  # takes minutes
    out = main('exported', str(config), str(checkpoint), str(file), '--rounds', '1')
    assert first_cells(out)[-3:] == ['PyTorch', 'torch.compile', str(file)]
    row = next(line for line in out.splitlines() if line.startswith(f'| {file}'))
    assert float(row.split('|')[-2]) == pytest.approx(file.stat().st_size / 1e6, abs=0.1)


@pytest.mark.parametrize(
    ('size', 'shapes', 'expected'),
    [
        (None, [(1, 64, 96, 3), (None, None, None, 3)], (64, 96)),
        ([64, 96], [(None, None, None, 3)], (64, 96)),
        ([96, 64], [(1, 64, 96, 3)], '96 64'),
        (None, [(1, 64, 96, 3), (1, 64, 64, 3)], '64 64'),
        (None, [(None, None, None, 3)], '--size'),
        (None, [(1, 3, 64, 96)], '--raw'),
    ],
)
def test_size_of_exported_files(benchmarking, size, shapes, expected):
    inputs = [InputInfo('image', 'uint8', shape) for shape in shapes]
    runtimes = {f'{i}.onnx': argparse.Namespace(input=info) for i, info in enumerate(inputs)}
    if isinstance(expected, tuple):
        assert benchmarking.exported.common_size(size, runtimes) == expected
        return
    with pytest.raises(UserError, match=expected):
        benchmarking.exported.common_size(size, runtimes)


def test_exported_file_that_does_not_exist(main, tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    with pytest.raises(SystemExit) as error:
        main('exported', 'none.py', 'none.pth', str(tmp_path / 'model.onnx'))
    assert error.value.code == 2 and 'model.onnx' in capsys.readouterr().err


def test_growth_draws_a_plot(main, benchmarking, monkeypatch, tmp_path):
    monkeypatch.setattr(
        benchmarking.networks, 'TINY', dict(embed_dim=4, depths=(1,), focal_levels=1)
    )
    monkeypatch.setattr(benchmarking.tables, 'GROWTH', [(32, 32), (64, 64)])
    out = main('growth', '--rounds', '1', '--out', str(tmp_path / 'new'))
    assert '1 x 64 x 64' in out and '4 x 512 x 512' in out
    assert (tmp_path / 'new/cost_against_pixels.png').stat().st_size > 1000


def test_peak_memory(benchmarking, monkeypatch):
    """A module that keeps a known number of tensors of its input's size."""

    class Keeper(torch.nn.Module):
        def forward(self, x):
            return [x.requires_grad_().exp().exp().exp().exp()]

    model = Keeper()
    network = benchmarking.networks.Network(model, model, ARGS)
    monkeypatch.setattr(benchmarking.measuring, 'rows_of', lambda *_: {'keeper': lambda: network})
    monkeypatch.setattr(benchmarking.measuring, 'prepare', lambda args: None)
    shape = (1, 3, 2048, 2048)
    mebibytes = 3 * 2048 * 2048 * 4 / 2**20
    gc.collect()
    peak = benchmarking.measuring._peak_memory('backbone', 'keeper', shape, ARGS)
    # The process may have had free pages; memory of other tests may be freed meanwhile.
    assert 2.9 * mebibytes <= peak < 8 * mebibytes


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_cuda_without_a_gpu(main, capsys):
    with pytest.raises(SystemExit) as error:
        main('backbone', '--device', 'cuda')
    assert error.value.code == 2
    assert '--device cpu' in capsys.readouterr().err


def test_sizes_must_be_positive(main, capsys):
    with pytest.raises(SystemExit) as error:
        main('operator', '--size', '0', '40')
    assert error.value.code == 2
    assert '--size' in capsys.readouterr().err


@pytest.mark.e2e
def test_as_a_command_with_a_process_for_each_row(run):
    flags = ['--size', '32', '40', '--dim', '4', '--rounds', '1']
    out = run(sys.executable, 'tools/benchmark.py', 'operator', *flags).stdout
    row = next(line for line in out.splitlines() if line.startswith('| published layout'))
    assert int(row.split('|')[-2]) >= 0
