"""tools/benchmark.py: the tables it prints and the plot it draws, for small sizes."""

import gc
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from mmfocalnet import FocalNet

TOOL = Path(__file__).resolve().parents[2] / 'tools/benchmark.py'


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location('benchmark', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # A separate process for each row takes seconds.
    monkeypatch.setattr(module, 'peak_memory', lambda *args: 10.0)
    return module


@pytest.fixture
def main(tool, monkeypatch, capsys):
    def _main(*args):
        threads = torch.get_num_threads()
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *args])
        try:
            tool.main()
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return _main


def test_the_published_layout_is_the_same_network(tool):
    torch.manual_seed(0)
    net = FocalNet(embed_dim=8, depths=(1, 1), focal_levels=2, focal_windows=3).eval()
    x = torch.randn(1, 3, 40, 48)
    expected = net(x)
    calls = []
    layout = tool.algorithm_1
    tool.algorithm_1 = lambda *args: calls.append(1) or layout(*args)
    for out, wanted in zip(tool.as_published(net)(x), expected, strict=True):
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2


def test_operator(main):
    pytest.importorskip('numba')
    out = main('operator', '--size', '32', '40', '--dim', '4', '--rounds', '1')
    rows = [line.split('|')[1].strip() for line in out.splitlines() if line.startswith('| ')]
    assert rows[-4:] == [
        'published layout',
        *(f'mmfocalnet, {path} path' for path in ('numba', 'pytorch', 'reference')),
    ]


def test_backbone(main, tool, monkeypatch):
    small = dict(embed_dim=4, depths=(1, 1), focal_levels=1, focal_windows=3)
    monkeypatch.setattr(tool, 'TINY', small)
    kept = ('published layout', 'mmfocalnet', 'mmfocalnet, use_checkpoint')
    backbones = tool.backbones

    def few_backbones(device):
        few = {name: row for name, row in backbones(device).items() if name in kept}
        return few | {'mmfocalnet, torch.compile': None}

    monkeypatch.setattr(tool, 'backbones', few_backbones)
    out = main('backbone', '--size', '32', '40', '--rounds', '1')
    for name in kept:
        assert f'| {name} ' in out
    assert 'Lower bound: ' in out


def test_a_detector_takes_a_training_step(tool):
    model, call = tool.detectors('cpu', tool.DETECTORS['detector'])[tool.OURS]()
    tool.step(model, call, torch.randn(1, 3, 64, 64), False)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_growth_draws_a_plot(main, tool, monkeypatch, tmp_path):
    monkeypatch.setattr(tool, 'TINY', dict(embed_dim=4, depths=(1,), focal_levels=1))
    monkeypatch.setattr(tool, 'GROWTH', [(32, 32), (64, 64)])
    out = main('growth', '--rounds', '1', '--out', str(tmp_path / 'new'))
    assert '1 x 64 x 64' in out and '4 x 512 x 512' in out
    assert (tmp_path / 'new/cost_against_pixels.png').stat().st_size > 1000


def test_peak_memory(tool, monkeypatch):
    """A module that keeps a known number of tensors of its input's size."""

    class Keeper(torch.nn.Module):
        def forward(self, x):
            return [x.exp().exp().exp().exp()]

    model = Keeper()
    monkeypatch.setattr(tool, 'rows_of', lambda *args: {'keeper': lambda: (model, model)})
    monkeypatch.setattr(tool, 'prepare', lambda args: None)
    args = tool.argparse.Namespace(device='cpu', amp=False)
    monkeypatch.setattr(
        tool, 'step', lambda model, call, x, amp: call(x.requires_grad_())[0].sum().backward()
    )
    shape = (1, 3, 2048, 2048)
    mebibytes = 3 * 2048 * 2048 * 4 / 2**20
    gc.collect()
    peak = tool._peak_memory('backbone', 'keeper', shape, args)
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
    assert row.split('|')[-2].strip() in ('1.00', 'nan')
