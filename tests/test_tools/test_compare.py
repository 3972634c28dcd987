"""tools/compare.py trains and tests configs with several seeds and prints a table."""

import re
import sys

import pytest
import torch
import yaml
from forked_tools import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

CONFIG = str(ROOT / 'configs/demo/mask_rcnn.py')


def write_table(folder, options, metric):
    rows = {
        'published': dict(config=CONFIG, options=options),
        'no gates': dict(config=CONFIG, options=[*options, 'model.backbone.use_gates=False']),
    }
    table = folder / 'table.yml'
    table.write_text(yaml.safe_dump(dict(metrics={metric: 'score'}, rows=rows)))
    return table


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
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
    folders = sorted(tmp_path.glob('work_dirs/compare/table/*/seed*'))
    assert [folder.name for folder in folders] == ['seed0', 'seed1'] * 2


@pytest.mark.parametrize('text', ['', 'rows: {}', 'metrics: {a: b}\nrows: [c]', '{'])
def test_a_malformed_table(tool, tmp_path, text):
    (tmp_path / 'table.yml').write_text(text)
    code, _, error = tool('compare', tmp_path / 'table.yml')
    assert code == 2 and 'table.yml' in error


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
