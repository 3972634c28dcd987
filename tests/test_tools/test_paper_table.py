"""tools/paper_table.py: its counts, its check, its tables and the pages with them."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/paper_table.py'
PAPER = ROOT / 'tests/data/paper.yaml'
ZOO = 'docs/model_zoo.md'
ABLATIONS = 'docs/ablations.md'
# Names of the ablations in paper.yaml.
FACTS = {
    'depth-wise ConvNet': 'depthwise_convnet',
    'pooling aggregator': 'pooling_aggregator',
    'global pooling aggregator': 'global_pooling',
    'multi-scale attention, q, k, v first': 'multiscale_sa_qkv_first',
    'multi-scale attention, q, k, v later': 'multiscale_sa_qkv_later',
    'sliding-window attention': 'sliding_window_sa',
    'additive': 'additive',
    'no global pool': 'no_global_pool',
    'top only': 'top_only',
    'no gating': 'no_gating',
    '0 levels': 'levels_0',
    '1 level (3)': 'levels_1_k3',
    '4 levels (3-5-7-9)': 'levels_4',
    '1 level (13)': 'levels_1_k13',
}


COUNTED = {}


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location('paper_table', TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'paper_table', module)  # dataclasses look for their module
    spec.loader.exec_module(module)
    count = module.Classifier.counted

    def count_once(self, figure):
        key = (repr(self.settings), self.size, figure)
        if key not in COUNTED:
            COUNTED[key] = count(self, figure)
        return COUNTED[key]

    monkeypatch.setattr(module.Classifier, 'counted', count_once)
    return module


@pytest.fixture
def copy(tool, tmp_path, monkeypatch):
    """A copy of the files that the tool reads and writes, which it uses."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    (tmp_path / 'docs').mkdir()
    for page in (ZOO, ABLATIONS):
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copy(tool.CLASSIFIERS, tmp_path)
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setattr(tool, 'CLASSIFIERS', tmp_path / tool.CLASSIFIERS.name)
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


def corrupt(path, old, new):
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
    network = find(tool, folder, name)
    assert network.counted('FLOPs (G)') == pytest.approx(figure, abs=0.005)


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
    assert network.counted('Parameters (M)') == pytest.approx(counted, abs=0.0005)
    assert network.shipped('Parameters (M)') == pytest.approx(shipped, abs=0.0005)


def test_the_schedules_of_a_network_share_its_figures(tool):
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


def test_figures_of_the_classifiers_are_those_of_the_paper(tool):
    facts = yaml.safe_load(PAPER.read_text())['classification']
    large, ablations = facts.pop('large'), facts.pop('ablations')
    facts['large'] = dict(large, top1=large['top1_22k'])
    facts['large at 384'] = large['at384']
    stated = {fact_of(row): row for row in tool.networks('classification')}
    assert stated.keys() == facts.keys()
    full, *others = tool.networks('ablations')
    assert (full.settings, full.metrics) == (stated['tiny_lrf'].settings, {'top-1': [82.3]})
    assert {FACTS[row.name] for row in others} == ablations.keys()
    stated |= {FACTS[row.name]: row for row in others}
    for name, fact in {**facts, **ablations}.items():
        row = stated[name]
        assert row.metrics == {'top-1': [fact['top1']]}
        assert row.paper.get('FLOPs (G)') == fact['flops']
        assert row.paper.get('Parameters (M)') == fact.get('params')


def fact_of(row):
    """The name of a classifier in paper.yaml."""
    arch, deep = row.settings['arch'], '_deep' in row.settings['arch']
    if 'large' in arch:
        return 'large' if row.size == 224 else f'large at {row.size}'
    # The networks of Table 3 have the overlapped embedding, which their names omit.
    return arch + '_conv_embed' * (row.settings.get('use_conv_embed', False) and not deep)


def test_a_figure_that_differs_has_a_note(tool):
    rows = [row for group in tool.GROUPS for row in tool.networks(group)]
    differing = {row.name: row.paper for row in rows if 'Differs' in row.paper}
    assert sum(len(paper['Differs']) for paper in differing.values()) == 6
    for paper in differing.values():
        assert 'Note' in paper
        assert set(paper['Differs']) <= paper.keys()


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


def test_check_as_a_command(forked_tool):
    out = forked_tool('paper_table', '--check', 'atss').stdout
    assert len(re.findall('^agrees  atss/focalnet_t_', out, re.M)) == 4 == len(out.splitlines())


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'differs'),
    [
        ('metafile.yml', 'Parameters (M): 36.5', 'Parameters (M): 36.6', '_srf_3x  Parameters'),
        ('focalnet_t_3x.py', '[11, 9, 9, 7]', '[9, 9, 9, 9]', '_3x  (Parameters|FLOPs)'),
    ],
)
def test_check_fails_where_a_file_is_wrong(copy, main, capsys, file, old, new, differs):
    corrupt(copy / 'configs/atss' / file, old, new)
    assert main('--check', 'atss') == 1
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith('DIFFERS' if re.search(differs, line) else 'agrees')


def test_every_figure_of_the_classifiers_agrees_or_has_a_note(main, capsys):
    assert main('--check', 'classification', 'ablations') == 0
    out = capsys.readouterr().out
    assert len(re.findall('^agrees', out, re.M)) == 53
    assert re.findall(r'^noted  (.*?): paper', out, re.M) == [
        'FocalNet-B, deeper  FLOPs (G)',
        'top only  FLOPs (G)',
        '0 levels  FLOPs (G)',
        '4 levels (3-5-7-9)  FLOPs (G)',
        '1 level (13)  Parameters (M)',
        '1 level (13)  FLOPs (G)',
    ]
    assert '`top only`: 4.49 G is the figure of the complete operator.' in out


@pytest.mark.parametrize(
    ('name', 'old', 'new', 'verdict'),
    [
        ('FocalNet-B/16', 'FLOPs (G): 16.9}', 'FLOPs (G): 17.0}', 'DIFFERS  FocalNet-B/16  FLOPs'),
        ('FocalNet-S/16', 'arch: small_iso', 'arch: small_srf', 'DIFFERS  FocalNet-S/16  Param'),
        ('FocalNet-B, deeper', 'FLOPs (G): 14.3', 'FLOPs (G): 14.2', 'AGREES, though listed'),
    ],
)
def test_check_of_classifiers_fails_where_the_list_is_wrong(
    copy, tool, main, capsys, monkeypatch, name, old, new, verdict
):
    corrupt(copy / 'paper_classifiers.yml', old, new)
    (row,) = (row for row in tool.networks('classification') if row.name == name)
    monkeypatch.setattr(tool, 'networks', lambda group: [row])
    assert main('--check', 'classification') == 1
    assert verdict in capsys.readouterr().out


def test_check_prints_the_note_of_a_row(tool, monkeypatch, capsys):
    monkeypatch.setitem(tool.FIGURES, 'FLOPs (G)', lambda cfg: 0)
    tool.check(['mask_rcnn'])
    assert 'focalnet_t_{1x,3x}`: both numbers match windows 7' in capsys.readouterr().out


@pytest.mark.slow
def test_every_figure_of_the_paper_agrees(forked_tool):
    out = forked_tool('paper_table', '--check', timeout=600).stdout
    assert len(re.findall('^agrees', out, re.M)) == 38 + 53


# ------------------------------------------------------------------------------------------------
# The tables
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('page', [ZOO, ABLATIONS])
def test_the_pages_have_the_tables_of_classifiers(tool, page):
    (group,) = {'classification', 'ablations'} & set(tool.PAGES[page])
    lines = list(tool.tables([group]))
    assert len(lines) > 20
    assert '\n'.join(lines) in (ROOT / page).read_text()


def test_the_zoo_has_the_tables_that_the_tool_prints(tool):
    *head, row = tool.table([find(tool, 'atss', 'focalnet_t_3x')])
    assert row == '| `atss/focalnet_t_3x` | 37.2 | 37.21 | 37.21 | 220 | 220.41 | 220.41 | 49.6 |'
    assert {*head, row} <= set((ROOT / ZOO).read_text().splitlines())


@pytest.mark.slow
def test_the_pages_are_up_to_date(copy, main):
    assert main('--markdown') == 0
    for page in (ZOO, ABLATIONS):
        assert (copy / page).read_text() == (ROOT / page).read_text()


def test_figures_that_the_paper_does_not_state_are_dashes(tool, monkeypatch):
    monkeypatch.setitem(tool.FIGURES, 'FLOPs (G)', lambda cfg: 890.98)
    lines = list(tool.tables(['mask2former']))
    assert (
        '| `mask2former/focalnet_l_160k_ade20k_640` | 218 | 218.09 | 225.85 | - | - | 890.98 '
        '| - | - | 57.3 | 58.5 |'
    ) in lines
    assert lines[-1].startswith("`mask2former/focalnet_l_160k_ade20k_640`: the paper's 218 M do")


def test_markdown_replaces_the_tables_and_keeps_the_prose(copy, tool, main, monkeypatch):
    for page in tool.PAGES:
        (copy / page).write_text(f'before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n')
    for text in ('longer text', 'new'):
        monkeypatch.setattr(tool, 'tables', lambda groups, text=text: ['', *groups, text])
        assert main('--markdown') == 0
        for page, groups in tool.PAGES.items():
            tables = '\n'.join([*groups, text])
            expected = f'before\n{tool.BEGIN}\n\n{tables}\n\n{tool.END}\nafter\n'
            assert (copy / page).read_text() == expected
    assert sorted(f'docs/{path.name}' for path in (copy / 'docs').iterdir()) == [ABLATIONS, ZOO]


@pytest.mark.parametrize('page', [ZOO, ABLATIONS])
@pytest.mark.parametrize('marker', ['BEGIN', 'END'])
def test_markdown_needs_both_markers(copy, tool, main, capsys, monkeypatch, marker, page):
    monkeypatch.setattr(tool, 'tables', lambda groups: pytest.fail('counted'))
    corrupt(copy / page, getattr(tool, marker), '')
    text = (copy / page).read_text()
    assert main('--markdown') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert page in line and tool.BEGIN in line and tool.END in line
    assert (copy / page).read_text() == text


@pytest.mark.parametrize(
    ('args', 'tokens'),
    [
        (['yolo'], ['yolo', 'classification', 'mask_rcnn']),
        (['--markdown', 'atss'], ['--markdown']),
    ],
)
def test_wrong_groups(main, capsys, args, tokens):
    assert main(*args) == 2
    error = capsys.readouterr().err
    for token in tokens:
        assert token in error
