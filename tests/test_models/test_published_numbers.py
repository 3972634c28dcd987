"""FocalNet against outputs and gradients of the published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmfocalnet import FocalNet

FIXTURES = sorted((Path(__file__).parents[1] / 'data' / 'focalnet').glob('*.npz'))


def read(path):
    data = np.load(path)
    config = json.loads(str(data['config']))
    arrays = {name: torch.from_numpy(data[name]) for name in data.files if name != 'config'}
    params, grads = (
        {name.removeprefix(group): v for name, v in arrays.items() if name.startswith(group)}
        for group in ('param/', 'grad/')
    )
    return config, arrays, params, grads


def build(config, params):
    kind = config.pop('kind')
    last = len(config['depths']) - 1
    net = FocalNet(
        **config, drop_path_rate=0.0, **(dict(out_indices=[last]) if kind != 'dense' else {})
    )
    if kind == 'dense':
        net.load_state_dict(params)  # strict: the names are the published ones
    else:
        renamed = {
            key.replace('norm.', f'norm{last}.') if key.startswith('norm.') else key: value
            for key, value in params.items()
            if not key.startswith('head.')
        }
        net.load_state_dict(renamed)
    return net, kind


def outputs_of(net, kind, x, head):
    outs = list(net(x))
    if kind == 'dense':
        return outs
    tokens = outs[0].flatten(2).transpose(1, 2)
    return [tokens, F.linear(tokens.mean(1), head['head.weight'], head['head.bias'])]


def assert_close(actual, expected, what):
    scale = expected.abs().max().clamp_min(1e-12)
    error = ((actual - expected).abs().max() / scale).item()
    assert error < 1e-5, f'{what}: relative error {error:.2e}'


@pytest.mark.parametrize('path', FIXTURES, ids=lambda path: path.stem)
@pytest.mark.parametrize('use_checkpoint', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
def test_equals_the_published_code(path, use_checkpoint, channels_last):
    config, arrays, params, grads = read(path)
    net, kind = build(dict(config, use_checkpoint=use_checkpoint), params)
    head = {
        key: params[key].requires_grad_() for key in ('head.weight', 'head.bias') if key in params
    }
    x = arrays['x']
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    outs = outputs_of(net, kind, x, head)
    generator = torch.Generator().manual_seed(7)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs) / 100
    loss.backward()

    for i, out in enumerate(outs):
        assert_close(out, arrays[f'out{i}'], f'out{i}')
    assert_close(x.grad, arrays['dx'], 'dx')
    ours = {name: p.grad for name, p in net.named_parameters()}
    ours.update({name: p.grad for name, p in head.items()})
    last = len(config['depths']) - 1
    assert grads
    for name, expected in grads.items():
        key = name.replace('norm.', f'norm{last}.') if name.startswith('norm.') else name
        assert_close(ours[key], expected, name)


def test_fixtures_exist():
    assert FIXTURES
