"""tools/paper_table.py: its counts, its check and how that fails, its tables and the zoo."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/paper_table.py'
ZOO = ROOT / 'docs/model_zoo.md'


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('paper_table', TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules['paper_table'] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tool, tmp_path, monkeypatch):
    """The configs and the zoo, free to be spoilt, with the tool looking at them."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    shutil.copy(ZOO, tmp_path)
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setattr(tool, 'ZOO', tmp_path / ZOO.name)
    return tmp_path


@pytest.fixture
def main(tool, monkeypatch):
    """Run the tool with these arguments; returns its exit code."""

    def _main(*args):
        monkeypatch.setattr(sys, 'argv', ['paper_table.py', *args])
        try:
            tool.main()
        except SystemExit as exit:
            return exit.code
        return 0

    return _main


def find(tool, folder, name):
    return next(row for row in tool.networks(folder) if row.name == f'{folder}/{name}')


def spoil(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ------------------------------------------------------------------------------------------------
# Counts
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('folder', 'name', 'figure'),
    [
        ('mask_rcnn', 'focalnet_b_{1x,3x}', 507.12),
        ('cascade_rcnn', 'focalnet_t_srf_3x', 745.65),  # 2176 G with 1000 mask RoIs
        ('sparse_rcnn', 'focalnet_t_3x', 178.00),
        ('upernet', 'focalnet_s_160k_ade20k', 1043.61),
    ],
)
def test_flops_as_the_paper_counted(tool, folder, name, figure):
    assert tool.counted('FLOPs (G)', find(tool, folder, name)) == pytest.approx(figure, abs=0.005)


@pytest.mark.parametrize(
    ('folder', 'name', 'counted', 'shipped'),
    [
        ('mask_rcnn', 'focalnet_t_{1x,3x}', 48.896, 49.426),  # windows 7 and 9
        ('upernet', 'focalnet_t_srf_160k_ade20k', 60.729, 60.823),  # windows 11, 9, 9, 7 and 9
        ('atss', 'focalnet_t_3x', 37.209, 37.209),
        ('mask2former', 'focalnet_l_160k_ade20k_640', 218.094, 225.854),  # patch embedding
    ],
)
def test_parameters_as_the_paper_counted_and_as_shipped(tool, folder, name, counted, shipped):
    network = find(tool, folder, name)
    assert tool.counted('Parameters (M)', network) == pytest.approx(counted, abs=0.0005)
    assert tool.shipped('Parameters (M)', network) == pytest.approx(shipped, abs=0.0005)


def test_a_network_is_its_schedules_whose_figures_are_the_same(tool):
    assert find(tool, 'mask_rcnn', 'focalnet_b_{1x,3x}').metrics == {
        'box AP': [49.0, 49.8],
        'mask AP': [43.5, 44.1],
    }
    for path in ROOT.glob('configs/*/metafile.yml'):
        stated = {}
        for model in yaml.safe_load(path.read_text())['Models']:
            paper = model['Metadata'].get('Paper')
            network = re.sub('_[13]x$', '', model['Name'])
            assert stated.setdefault(network, paper) == paper


# ------------------------------------------------------------------------------------------------
# The check
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('printed', 'value', 'expected'),
    [
        (48.6, 48.649, True),
        (48.6, 48.651, False),
        (268, 267.51, True),
        (268, 267.49, False),
        (178.0, 178.06, False),  # the zero was printed, too
    ],
)
def test_agrees_to_the_printed_digit(tool, printed, value, expected):
    assert tool.agrees(printed, value) is expected


def test_check_as_a_command(run):
    out = run(sys.executable, TOOL, '--check', 'atss').stdout
    assert len(re.findall('^agrees  atss/focalnet_t_', out, re.M)) == 4 == len(out.splitlines())


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'differs'),
    [
        ('metafile.yml', 'Parameters (M): 36.5', 'Parameters (M): 36.6', '_srf_3x  Parameters'),
        ('focalnet_t_3x.py', '[11, 9, 9, 7]', '[9, 9, 9, 9]', '_3x  (Parameters|FLOPs)'),
    ],
)
def test_check_fails_where_a_file_is_wrong(copy, main, capsys, file, old, new, differs):
    spoil(copy / 'configs/atss' / file, old, new)
    assert main('--check', 'atss') == 1
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith('DIFFERS' if re.search(differs, line) else 'agrees')


def test_check_gives_the_reason_of_a_row_counted_otherwise(tool, monkeypatch, capsys):
    monkeypatch.setitem(tool.FIGURES, 'FLOPs (G)', lambda cfg: 0)
    tool.check(['mask_rcnn'])
    assert 'focalnet_t_{1x,3x}`: both figures fit windows 7' in capsys.readouterr().out


@pytest.mark.slow
def test_every_figure_of_the_paper_comes_out(run):
    out = run(sys.executable, TOOL, '--check').stdout
    assert len(re.findall('^agrees', out, re.M)) == 38


# ------------------------------------------------------------------------------------------------
# The tables
# ------------------------------------------------------------------------------------------------


def test_the_zoo_has_the_tables_that_the_tool_prints(tool):
    *head, row = tool.table([find(tool, 'atss', 'focalnet_t_3x')])
    assert row == '| `atss/focalnet_t_3x` | 37.2 | 37.21 | 37.21 | 220 | 220.41 | 220.41 | 49.6 |'
    assert {*head, row} <= set(ZOO.read_text().splitlines())


@pytest.mark.slow
def test_the_zoo_is_up_to_date(copy, main):
    assert main('--markdown') == 0
    assert (copy / ZOO.name).read_text() == ZOO.read_text()


def test_what_the_paper_does_not_state_is_a_dash(tool, monkeypatch):
    monkeypatch.setitem(tool.FIGURES, 'FLOPs (G)', lambda cfg: 890.98)
    lines = list(tool.tables(['mask2former']))
    assert (
        '| `mask2former/focalnet_l_160k_ade20k_640` | 218 | 218.09 | 225.85 | - | - | 890.98 '
        '| - | - | 57.3 | 58.5 |'
    ) in lines
    assert lines[-1].startswith('`mask2former/focalnet_l_160k_ade20k_640`: the 218 M leave out')


def test_markdown_replaces_the_tables_and_keeps_the_prose(copy, tool, main, monkeypatch):
    zoo = copy / ZOO.name
    zoo.write_text(f'before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n')
    for text in ('longer text', 'new'):
        monkeypatch.setattr(tool, 'tables', lambda folders, text=text: ['', *folders, text])
        assert main('--markdown') == 0
        tables = '\n'.join([*tool.FOLDERS, text])
        assert zoo.read_text() == f'before\n{tool.BEGIN}\n\n{tables}\n\n{tool.END}\nafter\n'
    assert sorted(path.name for path in copy.iterdir()) == ['configs', ZOO.name]


@pytest.mark.parametrize('marker', ['BEGIN', 'END'])
def test_markdown_needs_both_markers(copy, tool, main, capsys, monkeypatch, marker):
    monkeypatch.setattr(tool, 'tables', lambda folders: pytest.fail('counted all the same'))
    spoil(copy / ZOO.name, getattr(tool, marker), '')
    text = (copy / ZOO.name).read_text()
    assert main('--markdown') == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert tool.BEGIN in sentence and tool.END in sentence
    assert (copy / ZOO.name).read_text() == text


@pytest.mark.parametrize(
    ('args', 'sentence'),
    [
        (['yolo'], 'no table is of yolo; there are mask_rcnn, cascade_rcnn'),
        (['--markdown', 'atss'], '--markdown writes all tables; leave out the folders'),
    ],
)
def test_folders_that_do_not_fit(main, capsys, args, sentence):
    assert main(*args) == 2
    assert sentence in capsys.readouterr().err
