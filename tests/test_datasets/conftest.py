"""Small datasets to damage, and configs of the demos that use them."""

import shutil

import pytest
from mmengine.config import Config
from tool_runs import ROOT

from mmfocalnet.datasets import make_shapes
from mmfocalnet.datasets.inspection import chart


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    """Four images to train on and two to validate."""
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 4, 2, size=64)


@pytest.fixture(scope='session')
def configs(tmp_path_factory):
    """Paths of demos by name, written without their bases, which are slow to read."""
    folder = tmp_path_factory.mktemp('configs')
    paths = {}
    for name in ('mask_rcnn', 'mask2former', 'atss', 'upernet'):
        paths[name] = folder / f'{name}.py'
        cfg = Config.fromfile(ROOT / f'configs/demo/{name}.py').to_dict()
        paths[name].write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.items()))
    return paths


@pytest.fixture
def data(made, tmp_path, monkeypatch):
    """A copy of the set to damage, where the demos expect it."""
    monkeypatch.chdir(tmp_path)
    # Drawing takes longer than everything else.
    monkeypatch.setattr(chart, 'draw_counts', lambda *_: None)
    return shutil.copytree(made, tmp_path / 'data/shapes')
