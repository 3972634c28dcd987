import gc
import os
import runpy
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
import unformatted_configs  # noqa: F401
from mmengine.utils import ManagerMixin

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
STARTED = time.monotonic()

# pytest-xdist keeps the cores busy.
torch.set_num_threads(1)
os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_addoption(parser):
    parser.addoption(
        '--budget', type=float, metavar='SECONDS', help='skip tests that would start later'
    )


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker('slow') is not None)
    for item in items:
        for marker, seconds in (('slow', 900), ('e2e', 300), ('packaging', 300)):
            if item.get_closest_marker(marker) and not item.get_closest_marker('timeout'):
                item.add_marker(pytest.mark.timeout(seconds))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    budget = item.config.getoption('--budget')
    if budget is not None and time.monotonic() - STARTED > budget:
        pytest.skip(f'the budget of {budget:g} s is spent')


def pytest_unconfigure():
    gc.unfreeze()  # nanobind reports what is not collected at exit


@pytest.fixture(autouse=True, scope='module')
def _freeze_imported_objects():
    """Each dataset collects garbage, which takes long among the objects of all the imports."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def coco_root():
    """A few COCO images, which are not part of the project."""
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
    """Fail if a file is loaded in a way that could run code; count the loads of each file."""
    counted = Counter()
    load = torch.load

    def checked(file, *args, weights_only=None, **settings):
        # Before PyTorch 2.6, a pickle module that finds only allowed names is as safe.
        restricted = getattr(settings.get('pickle_module'), '__name__', '') == 'restricted'
        assert weights_only is True or restricted
        if isinstance(file, (str, os.PathLike)):  # not a part of a file, as torch.export loads
            counted[Path(file).name] += 1
        return load(file, *args, weights_only=weights_only, **settings)

    def refuse(*_, **__):
        raise AssertionError('torch.jit.load was called')

    monkeypatch.setattr(torch, 'load', checked)
    monkeypatch.setattr(torch.serialization, 'load', checked)
    monkeypatch.setattr(torch.jit, 'load', refuse)
    return counted


@pytest.fixture
def tool(monkeypatch, capfd, loads):
    """Run a tool in this process; return its exit code, stdout and stderr."""

    def run(name, *arguments):
        # Forget the loggers, visualizers and message hubs of earlier runs.
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
