"""The recipes of docs/training.md: EMA, accumulated gradients, frozen stages."""

import pickle
import re

import narrow_models
import pytest
import torch
from forked_tools import ROOT

ATSS = ROOT / 'configs/demo/atss.py'


@pytest.fixture
def options(tiny_options):
    options = [o for o in tiny_options if not o.startswith(('model.', 'train_cfg.val'))]
    return [*options, *narrow_models.ATSS, 'train_cfg.val_interval=2']


def load(path):
    # Written by this test.
    return torch.load(path, weights_only=False)


def recipe(heading):
    """The first Python block below a heading of docs/training.md."""
    text = (ROOT / 'docs/training.md').read_text()
    return re.search(rf'\n#+ {heading}\n.*?```python\n(.*?)```', text, re.DOTALL)[1]


def scores(path):
    with open(path, 'rb') as file:
        return torch.cat([image['pred_instances']['scores'] for image in pickle.load(file)])


def test_ema_accumulated_gradients_and_frozen_stages(forked_tool, options, tmp_path):
    """The recipes as the docs show them, for four iterations."""
    config = tmp_path / 'recipes.py'
    headings = ('Averaged weights', 'Gradient accumulation', 'Frozen stages')
    config.write_text(f"_base_ = '{ATSS}'\n" + ''.join(map(recipe, headings)))
    forked_tool(
        'train', config, '--work-dir', tmp_path, '--cfg-options', *options,
        'custom_hooks.0.momentum=0.5', 'optim_wrapper.accumulative_counts=2',
        'train_cfg.max_iters=4', 'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.max_keep_ckpts=4', 'optim_wrapper.optimizer.lr=0.1',
    )  # fmt: skip
    start, end = load(tmp_path / 'iter_1.pth'), load(tmp_path / 'iter_4.pth')
    assert {state['step'].item() for state in end['optimizer']['state'].values()} == {2}

    averaged, raw = end['state_dict'], end['ema_state_dict']
    raw = {name: raw[f'module.{name}'] for name in averaged}
    frozen = ('backbone.patch_embed', 'backbone.layers.0', 'backbone.layers.1')
    assert any(name.startswith(frozen) for name in raw)
    for name, weight in raw.items():
        still = torch.equal(weight, start['state_dict'][name])  # no step before the second
        assert still == name.startswith(frozen), name
        assert torch.equal(weight, averaged[name]) == still, name

    def test(name, config):
        out = tmp_path / 'scores.pkl'
        forked_tool(
            'test', config, tmp_path / name, '--work-dir', tmp_path / 'test', '--out', out,
            '--cfg-options', *options, 'model.test_cfg.score_thr=0',
        )  # fmt: skip
        return scores(out)

    for name, weights in (('averaged.pth', averaged), ('raw.pth', raw)):
        torch.save(dict(state_dict=weights, meta=end['meta']), tmp_path / name)
    with_hook = test('iter_4.pth', config)
    assert torch.equal(with_hook, test('averaged.pth', ATSS))
    assert not torch.equal(with_hook, test('raw.pth', ATSS))
