"""tools/compare.py trains and tests configs with several seeds and prints a table."""

import re
import sys

import pytest
import torch
import yaml
from forked_tools import ROOT
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.config import read_model_config

CONFIG = str(ROOT / 'configs/demo/mask_rcnn.py')


def write_table(folder, options, metric):
    pairs = (option.split('=', 1) for option in options)
    options = {key: DictAction._parse_iterable(value) for key, value in pairs}
    rows = {
        'published': dict(config=CONFIG, options=options),
        'no gates': dict(config=CONFIG, options={**options, 'model.backbone.use_gates': False}),
    }
    table = folder / 'table.yml'
    table.write_text(yaml.safe_dump(dict(metrics={metric: 'score'}, rows=rows)))
    return table


@pytest.mark.e2e
@pytest.mark.slow
def test_two_configs(run, tiny_options, tmp_path):
    command = [sys.executable, ROOT / 'tools/compare.py', tmp_path / 'table.yml', '--seeds', '2']
    write_table(tmp_path, tiny_options, 'coco/segm_AP')
    error = run(*command, cwd=tmp_path, code=2).stderr
    assert 'coco/segm_AP' in error and 'coco/segm_mAP' in error
    # With the right name, the runs are not repeated.
    write_table(tmp_path, tiny_options, 'coco/segm_mAP')
    output = run(*command, cwd=tmp_path).stdout
    assert 'Iter(train)' not in output
    number = r'[\d.]+'
    for name in ('published', 'no gates'):
        assert re.search(rf'\| {name} \| {number} ± {number} \| {number} \| \d+ \|', output)
    runs = [
        Config.fromfile(path)
        for path in sorted(tmp_path.glob('work_dirs/compare/table/*/*/*/vis_data/config.py'))
    ]
    settings = [(cfg.model.backbone.get('use_gates', True), cfg.randomness.seed) for cfg in runs]
    assert sorted(set(settings)) == [(False, 0), (False, 1), (True, 0), (True, 1)]


def test_a_changed_row_does_not_get_the_old_results(tool, tiny_options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tiny_options, 'coco/segm_mAP')
    folder = tmp_path / 'work_dirs/compare/table/no gates'
    folder.mkdir(parents=True)
    (folder / 'seed0.py').write_text('model = dict()\n')
    code, _, error = tool('compare', 'table.yml')
    assert code == 2 and 'no gates/seed0' in error
    assert [path.name for path in folder.parent.iterdir()] == ['no gates']


@pytest.mark.parametrize(
    'text, key',
    [
        ('', 'table.yml'),
        ('{', 'table.yml'),
        ('metrics: {a: b}\nrows: {}', 'table.yml'),
        ('metrics: {a: b}\nrows: [c]', 'table.yml'),
        ('metrics: {a: b}\nrows: {c: {}}', 'config'),
        ('metrics: {a: b}\nrows: {c: {config: none.py}}', 'none.py'),
        (f'metrics: {{a: b}}\nrows: {{c: {{config: {CONFIG}, options: [d=e]}}}}', 'table.yml'),
        (f'metrics: {{a: b}}\nrows: {{no: {{config: {CONFIG}}}}}', 'False'),
        (f'metrics: {{a: b}}\nrows: {{../c: {{config: {CONFIG}}}}}', '../c'),
    ],
)
def test_malformed_tables(tool, tmp_path, monkeypatch, text, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'table.yml').write_text(text)
    code, _, error = tool('compare', tmp_path / 'table.yml')
    assert code == 2 and key in error
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('name', ['ablations', 'bccd', 'recipe'])
def test_rows_of_our_tables_differ(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = yaml.safe_load((ROOT / f'tools/comparison/{name}.yml').read_text())['rows']
    configs = [
        read_model_config(row['config'], row.get('options', {}), import_modules=False)
        for row in rows.values()
    ]
    assert len({cfg.pretty_text for cfg in configs}) == len(rows)
    if name == 'recipe':
        assert {cfg.train_dataloader.dataset.pipeline[4].type for cfg in configs} == {'RandomFlip'}


@pytest.mark.parametrize('name', ['swin', 'convnext', 'resnet18'])
def test_backbones_have_as_many_parameters_as_focalnet(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    sizes = []
    for config in ('configs/bccd/atss_focalnet.py', f'tools/comparison/atss_{name}.py'):
        cfg = Config.fromfile(ROOT / config)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model)
        assert model(torch.zeros(1, 3, 64, 96))
        sizes.append(sum(parameter.numel() for parameter in model.backbone.parameters()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
