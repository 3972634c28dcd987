"""Every tool accepts a config in MMEngine's pure Python style, whose types are classes."""

from pathlib import Path

import mmengine.registry
import pytest
from forked_tools import ROOT
from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.visualization import Visualizer

from mmfocalnet.cli.config_flags import use_tta
from mmfocalnet.config import read_config
from mmfocalnet.inference import load_predictor
from mmfocalnet.registry import type_name

REGISTRIES = [one for one in vars(mmengine.registry).values() if isinstance(one, Registry)]
SMALL = """from mmengine.config import read_base

with read_base():
    from .base import *

model.backbone.embed_dim = 8
model.neck.in_channels = [8, 16, 32, 64]
train_dataloader.batch_size = 2
train_cfg.max_iters = 2
train_cfg.val_interval = 2
default_hooks.checkpoint.interval = 2
default_hooks.logger.interval = 1
"""


def find_class(name):
    """The class of a name in the registries of mmdet, or else of MMEngine."""
    found = [registry.get(f'mmdet.{name}') or registry.get(name) for registry in REGISTRIES]
    return next((one for one in found if one), None)


def pure_python(cfg):
    """The text of a config with classes instead of the names of types."""
    imports = set()

    def text(node):
        if isinstance(node, (list, tuple)):
            return repr(type(node)(map(Source, node)))
        if not isinstance(node, dict):
            return repr(node)
        kind = find_class(node['type']) if isinstance(node.get('type'), str) else None
        items = {key: Source(value) for key, value in node.items()}
        if kind:
            imports.add(f'from {kind.__module__} import {kind.__name__}\n')
            items['type'] = Name(kind.__name__)
        return f'dict(**{items!r})'

    class Source:
        def __init__(self, node):
            self.node = node

        def __repr__(self):
            return text(self.node)

    class Name(str):
        __repr__ = str.__str__

    body = ''.join(f'{key} = {text(value)}\n' for key, value in cfg.items())
    return ''.join(sorted(imports)) + body


@pytest.fixture(scope='module')
def lazy(tmp_path_factory, shapes):
    """A folder with ``small.py``, a pure Python config, and its base."""
    home = tmp_path_factory.mktemp('lazy')
    (home / 'data').mkdir()
    (home / 'data/shapes').symlink_to(shapes)
    cfg = Config.fromfile(ROOT / 'configs/demo/mask_rcnn.py')
    # mmdet's configs of this style have neither.
    cfg.update(default_scope=None, custom_imports=None)
    (home / 'base.py').write_text(pure_python(cfg))
    (home / 'small.py').write_text(SMALL)
    return home


@pytest.fixture
def here(lazy, monkeypatch):
    monkeypatch.chdir(lazy)
    # MMEngine keeps visualizers by name.
    monkeypatch.setattr(Visualizer, '_instance_dict', type(Visualizer._instance_dict)())
    return lazy


@pytest.fixture
def checkpoint(here, tool):
    """The checkpoint of a training run of two iterations, which the first test runs."""
    if not (here / 'run/iter_2.pth').is_file():
        code, out, err = tool('train', 'small.py', '--work-dir', 'run')
        assert code == 0, out + err
    return 'run/iter_2.pth'


def test_types_are_classes(here):
    cfg = read_config('small.py')
    assert isinstance(cfg.model.backbone.type, type)
    assert isinstance(cfg.test_dataloader.dataset.pipeline[0].type, type)
    assert cfg.default_scope == 'mmdet'


def test_tools_with_weights(tool, checkpoint, shapes):
    image = next((shapes / 'coco/val2017').iterdir())
    for name, *arguments in (
        ('test', 'small.py', checkpoint, '--work-dir', 'test', '--show-dir', 'drawn'),
        ('infer', image, 'small.py', checkpoint, '--out', 'predicted'),
        ('visualize', image, 'small.py', checkpoint, '--what', 'gates', '--out', 'maps'),
    ):
        code, out, err = tool(name, *arguments)
        assert code == 0, f'{name}: {out}{err}'
    assert not Path('drawn').exists()
    assert len(list(Path('test').glob(f'*/drawn/{image.name}'))) == 1


def test_tools_without_weights(tool, here):
    for name, *arguments in (
        ('check_dataset', 'small.py'),
        ('browse_dataset', 'small.py', '--number', 1, '--not-show'),
    ):
        code, out, err = tool(name, *arguments)
        assert code == 0, f'{name}: {out}{err}'


def test_the_report_reads_a_dumped_config(tool, checkpoint):
    """Its types are strings such as 'mmdet.models.losses.smooth_l1_loss.L1Loss'."""
    code, out, err = tool('report', 'run', '--images', 1)
    assert code == 0, out + err


def test_a_config_changed_by_a_flag_can_be_dumped(here):
    cfg = read_config('small.py')
    use_tta(cfg)
    assert cfg.model.module.roi_head.mask_head is None  # mmdet merges boxes only
    cfg.dump('tta.py')
    assert type_name(read_config('tta.py').model.module) == 'MaskRCNN'


def test_the_predictor_of_the_web_page(checkpoint):
    assert load_predictor('small.py', checkpoint).task == 'boxes and masks'
