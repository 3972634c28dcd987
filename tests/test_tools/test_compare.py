"""tools/compare.py trains and tests configs with several seeds and prints a table."""

import importlib
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from forked_tools import ROOT
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.config import read_model_config

CONFIG = str(ROOT / 'configs/demo/mask_rcnn.py')


def write_table(
    folder, options, metric='coco/segm_mAP', change=('model.backbone.use_gates', False)
):
    pairs = (option.split('=', 1) for option in options)
    options = {key: DictAction._parse_iterable(value) for key, value in pairs}
    rows = {
        'published': dict(config=CONFIG, options=options),
        'no gates': dict(config=CONFIG, options={**options, change[0]: change[1]}),
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
    # With the right name, no run is repeated.
    write_table(tmp_path, tiny_options)
    output = run(*command, cwd=tmp_path).stdout
    number = r'[\d.]+'
    for name in ('published', 'no gates'):
        assert re.search(rf'\| {name} \| {number} ± {number} \| {number} \| \d+ \|', output)
    runs = [
        Config.fromfile(path)
        for path in sorted(tmp_path.glob('work_dirs/compare/table/*/*/*/vis_data/config.py'))
    ]
    settings = [(cfg.model.backbone.get('use_gates', True), cfg.randomness.seed) for cfg in runs]
    assert sorted(settings) == [(False, 0), (False, 1), (True, 0), (True, 1)]


def test_a_run_shorter_than_the_interval_of_the_log(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    compare = importlib.import_module('compare')
    monkeypatch.setattr(compare, 'run_tool', lambda *arguments: 7.0)
    monkeypatch.setattr(compare, 'read_history', lambda folder: SimpleNamespace(training=[]))
    compare.write(tmp_path / 'seed0/tested.json', '{"score": 1.0}')
    result = compare.train_and_test(tmp_path / 'seed0.py', 'model = dict()\n')
    assert math.isnan(result['time']) and (result['score'], result['memory']) == (1.0, 7.0)


def test_a_changed_row_does_not_get_the_old_results(tool, tiny_options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tiny_options)
    folder = tmp_path / 'work_dirs/compare/table/no gates'
    (folder / 'seed0').mkdir(parents=True)
    (folder / 'seed0.py').write_text('model = dict()\n')
    code, _, error = tool('compare', 'table.yml')
    assert code == 2 and 'no gates/seed0' in error
    assert [path.name for path in folder.parent.iterdir()] == ['no gates']


def test_a_killed_run_is_reported_and_its_row_can_be_changed(
    tool, tiny_options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tiny_options)
    config = tmp_path / 'work_dirs/compare/table/no gates/seed0.py'
    config.parent.mkdir(parents=True)
    config.write_text('model = dict()\n')  # a run that did not start
    killer = tmp_path / 'killer'
    killer.write_text('#!/bin/sh\nkill -9 $$\n')
    killer.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(killer))
    code, _, error = tool('compare', 'table.yml')
    assert code == 2 and 'no gates/seed0.py' in error and 'signal 9' in error
    assert 'FocalNet' in config.read_text()


def rows(text):
    return f'metrics: {{a: b}}\nrows: {{{text}}}'


@pytest.mark.parametrize(
    'text, key',
    [
        ('', 'table.yml'),
        ('{', 'line 1'),
        ('metrics: {a: b}', 'rows'),
        ('metrics: {a: b}\nrows: {}', 'rows'),
        ('metrics: [a]\nrows: {a: b}', 'metrics'),
        (f'metrics: {{a: 50}}\nrows: {{c: {{config: {CONFIG}}}}}', '50'),
        (f'metrics: {{a: }}\nrows: {{c: {{config: {CONFIG}}}}}', "'a'"),
        ('metrics: {a: b}\nrows: [c]', 'rows'),
        (rows('c: configs/demo/mask_rcnn.py'), "'c'"),
        (rows('c: {}'), 'config'),
        (rows('c: {config: none.py}'), 'none.py'),
        (rows(f'c: {{config: {CONFIG}, options: [d=e]}}'), 'd=e'),
        (rows(f'c: {{config: {CONFIG}, option: {{d: e}}}}'), "'option'"),
        (rows(f'c: {{config: {CONFIG}}}, c: {{config: {CONFIG}}}'), 'repeated'),
        (rows(f'no: {{config: {CONFIG}}}'), 'False'),
        (rows(f'18: {{config: {CONFIG}}}'), 'quotes'),
        (rows(f'../c: {{config: {CONFIG}}}'), "'../c' is not the name"),
        (rows(f'"c ": {{config: {CONFIG}}}'), "'c ' is not the name"),
        (rows(f'c: {{config: {CONFIG}, options: }}'), 'None'),
        (rows(f'c: {{config: {CONFIG}, options: {{1: 2}}}}'), '1: 2'),
    ],
)
def test_malformed_tables(tool, tmp_path, monkeypatch, text, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'table.yml').write_text(text)
    code, _, error = tool('compare', tmp_path / 'table.yml')
    assert code == 2 and key in error
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize(
    'change, key',
    [
        (('optim_wraper.optimizer.lr', 5e-4), "'optim_wrapper'"),
        (('model.backbone.use_gate', False), "'use_gates'"),
        (('model.backbone.type', 'FocalNe'), "'FocalNet'"),
        (('model.backbone.depths.7', 1), 'options {'),
        (('val_dataloader.dataset.data_root', 'none'), 'none'),
    ],
)
def test_a_mistake_in_a_row_is_found_before_the_first_run(
    tool, tiny_options, tmp_path, monkeypatch, change, key
):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tiny_options, change=change)
    code, _, error = tool('compare', 'table.yml')
    assert code == 2 and "'no gates'" in error and key in error
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
