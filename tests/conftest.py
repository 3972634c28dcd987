import gc
import runpy
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
import unformatted  # noqa: F401
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


@pytest.fixture(autouse=True, scope='module')
def _spare_the_garbage_collector():
    """Each dataset collects garbage, which takes long among the objects of all the imports."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def coco_root():
    """A few real COCO images, where they are at hand; they are not part of the project."""
    root = SHARED / 'data' / 'coco'
    if not root.is_dir():
        pytest.skip('no ../shared/data/coco here')
    return root


def _managers(kind=ManagerMixin):
    for child in kind.__subclasses__():
        yield child
        yield from _managers(child)


@pytest.fixture
def loads(monkeypatch):
    """Fail at a load that could run code; count the loads of each file."""
    counted = Counter()
    load = torch.load

    def checked(file, *args, weights_only=None, **settings):
        # Before PyTorch 2.6 a pickle module that finds allowed names only is as safe.
        restricted = getattr(settings.get('pickle_module'), '__name__', '') == 'restricted'
        assert weights_only is True or restricted
        counted[Path(file).name] += 1
        return load(file, *args, weights_only=weights_only, **settings)

    def refuse(*_, **__):
        raise AssertionError('TorchScript code was about to be run')

    monkeypatch.setattr(torch, 'load', checked)
    monkeypatch.setattr(torch.serialization, 'load', checked)
    monkeypatch.setattr(torch.jit, 'load', refuse)
    return counted


@pytest.fixture
def tool(monkeypatch, capfd, loads):
    """Run a tool in this process: exit code, and what it printed and said on stderr."""

    def run(name, *arguments):
        # Loggers, visualizers and message hubs, one of each to a process, are of an earlier run.
        for manager in _managers():
            monkeypatch.setattr(manager, '_instance_dict', OrderedDict())
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / f'tools/{name}.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return run
