"""tools/check_gpu.py, on the CPU."""

import importlib
import importlib.util
import json
import logging
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mmfocalnet.ops import dispatch, measured

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SECTIONS = [
    'environment',
    'operators',
    'stand-ins for ops of mmcv',
    'backbones',
    'families',
    'demo run',
    'speed',
]


@pytest.fixture
def checks(monkeypatch):
    """The modules of the tool. Operators are compared for one case each."""
    monkeypatch.syspath_prepend(TOOLS)
    names = ('families', 'operators', 'report', 'speed', 'stand_ins')
    modules = Namespace(**{name: importlib.import_module(f'gpu_checks.{name}') for name in names})
    cases = {operator: cases[:1] for operator, cases in modules.operators.CASES.items()}
    monkeypatch.setattr(modules.operators, 'CASES', cases)
    return modules


@pytest.fixture
def tool(checks, monkeypatch):
    """The module tools/check_gpu.py, whose only section are the operators."""
    monkeypatch.setenv('TORCHINDUCTOR_FORCE_DISABLE_CACHES', '')  # the tool sets it
    spec = importlib.util.spec_from_file_location('check_gpu', TOOLS / 'check_gpu.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'SECTIONS', [('operators', 1.0, checks.operators.run)])
    yield module
    logging.disable(logging.NOTSET)


@pytest.fixture
def main(tool, monkeypatch, tmp_path):
    """Run the tool; return its exit code and the checks that it wrote, by name."""

    def _main(*flags):
        arguments = ['--quick', '--device', 'cpu', '--out', tmp_path, *flags]
        monkeypatch.setattr(sys, 'argv', ['check_gpu.py', *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code
        file = tmp_path / 'gpu.json'
        found = json.loads(file.read_text())['checks'] if file.exists() else []
        return code, {check['name']: check for check in found}

    return _main


@pytest.fixture
def report(checks, tmp_path):
    """A report on the CPU."""
    report = checks.report.Report(Namespace(device='cpu', quick=True, out=tmp_path))
    report.run_section('section', 1.0, lambda report: None)
    return report


def test_right_operators_pass(main):
    code, found = main()
    assert code == 0
    assert {check['status'] for check in found.values()} == {'passed', 'skipped'}
    assert 'linear, reference path, bfloat16' in found
    for path in ('pytorch', 'reference'):
        assert found[f'modulate, {path} path, float32']['numbers']['largest error'] < 1e-5


@pytest.fixture
def scale_path(monkeypatch):
    """Scale the output of one path of the modulation."""

    def _scale_path(name, factor):
        def scaled(path):
            return path._replace(run=lambda *args: factor * path.run(*args))

        paths = tuple(scaled(p) if p.name == name else p for p in dispatch.MODULATION)
        monkeypatch.setattr(dispatch, 'MODULATION', paths)

    return _scale_path


@pytest.mark.parametrize('factor', [1.001, torch.nan])
def test_a_wrong_path_is_found(main, scale_path, factor):
    scale_path('pytorch', factor)
    code, found = main()
    assert code == 1
    for name in ('modulate, pytorch path, float32', 'strided inputs, pytorch path'):
        assert found[name]['status'] == 'failed' and 'output' in found[name]['note']
    assert found['modulate, reference path, float32']['status'] == 'passed'


def test_an_exception_fails_its_check_only(report):
    report.check('first', lambda: 1 / 0)
    report.check('second', lambda: {'number': 1.0})
    first, second = report.checks
    assert first['status'] == 'failed' and 'division by zero' in first['note']
    assert 'Traceback' in first['traceback']
    assert second['status'] == 'passed'


def test_an_exception_outside_of_checks_fails_its_section(report):
    report.run_section('broken', 1.0, lambda report: 1 / 0)
    assert report.count('failed', 'broken') == 1


def test_checks_after_the_deadline_are_skipped(report):
    report.deadline = 0
    report.check('late', lambda: 1 / 0)
    assert report.checks[-1]['status'] == 'skipped' and report.checks[-1]['note'] == 'no time'
    assert not report.is_good() and 'Incomplete' in report.verdict()[-1]


def test_speed_may_be_incomplete(report):
    report.section, report.deadline = 'speed', 0
    report.check('late', lambda: 1 / 0)
    assert report.is_good()


def test_results_are_marked_as_unfinished_until_the_end(report, tmp_path):
    report.write()
    assert 'Unfinished' in (tmp_path / 'gpu.md').read_text()
    assert json.loads((tmp_path / 'gpu.json').read_text())['complete'] is False
    report.finish()
    assert 'Unfinished' not in (tmp_path / 'gpu.md').read_text()
    assert json.loads((tmp_path / 'gpu.json').read_text())['complete'] is True


def test_models_of_a_missing_package_are_skipped(checks, report, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmseg', None)
    report.check('upernet', checks.families.train, 'upernet', 'cpu')
    assert report.checks[-1]['note'] == 'mmseg is not installed'


def test_errors_are_relative_and_nan_is_none(checks):
    one, nan = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, torch.nan])
    assert checks.report.relative_error(1.5 * one, one) == 0.5
    for pair in ((nan, one), (one, nan), (1.1 * one, one), (one[:2], one)):
        with pytest.raises(checks.report.Wrong):
            checks.report.largest_error({'x': pair[0]}, {'x': pair[1]}, 0.1)


def test_results_with_nan_are_json(report, tmp_path):
    report.check('nan', lambda: {'number': float('nan')})
    report.write()

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / 'gpu.json').read_text(), parse_constant=refuse)
    assert '| nan' in (tmp_path / 'gpu.md').read_text()


def test_the_measured_choice_is_compared(checks, report, monkeypatch, tmp_path):
    monkeypatch.setattr(measured, '_chosen', {})
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    measured._table.cache_clear()
    report.check('off', checks.operators.measured_choice, 'cpu')
    monkeypatch.setattr(measured, 'DEVICES', ('cpu',))
    report.check('on', checks.operators.measured_choice, 'cpu')
    measured._table.cache_clear()
    assert [check['status'] for check in report.checks] == ['failed', 'passed']
    assert 'reference ' in report.checks[1]['numbers']['times']


def test_a_stand_in_is_compared(checks, report, monkeypatch):
    name = 'roi_align.roi_align'
    report.check(name, checks.stand_ins.compare, name, 'cpu')
    forward = checks.stand_ins.OPS['pytorch']['roi_align_forward']

    def wrong(input, rois, output, *args, **kwargs):
        forward(input, rois, output, *args, **kwargs)
        output.mul_(1 + 1e-3 * (output.dtype == torch.float32))

    monkeypatch.setitem(checks.stand_ins.OPS['pytorch'], 'roi_align_forward', wrong)
    report.check(name, checks.stand_ins.compare, name, 'cpu')
    assert [check['status'] for check in report.checks] == ['passed', 'failed']


@pytest.mark.parametrize('name', ['classification', 'atss'])
def test_predictions_are_compared(checks, report, scale_path, name):
    report.check(name, checks.families.compare_predictions, name, 'cpu')
    scale_path('reference', 1.01)
    report.check(name, checks.families.compare_predictions, name, 'cpu')
    assert [check['status'] for check in report.checks] == ['passed', 'failed']


def test_rows_that_cannot_run_are_skipped(checks, report):
    def missing():
        raise ImportError('no such package')

    def broken():
        raise RuntimeError('broken')

    makers = {'other': broken, 'mmfocalnet': missing, 'mmfocalnet, a path': broken}
    checks.speed.compare(report, 'table', (1, 3, 4, 4), makers)
    assert [check['status'] for check in report.checks] == ['skipped', 'skipped', 'failed']


def test_without_a_gpu(main, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    code, found = main('--device', 'cuda')
    assert code == 2 and not found
    assert '--device cpu' in capsys.readouterr().err


def test_unwritable_folder(main, capsys):
    code, _ = main('--out', '/proc/no/such')
    assert code == 2 and '--out' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_checks(tmp_path):
    flags = ['--full', '--device', 'cpu', '--out', tmp_path]
    command = [sys.executable, TOOLS / 'check_gpu.py', *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / 'gpu.json').read_text())
    assert list(dict.fromkeys(check['section'] for check in found['checks'])) == SECTIONS
    for section in SECTIONS:
        statuses = [c['status'] for c in found['checks'] if c['section'] == section]
        assert 'passed' in statuses and 'failed' not in statuses
    text = (tmp_path / 'gpu.md').read_text()
    assert '## Checks' in text and '| mmfocalnet ' in text and 'training, ms' in text
