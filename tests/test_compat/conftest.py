import importlib
from types import SimpleNamespace

import pytest

from mmfocalnet.compat import ensure_mmcv_ops, mmcv_ops


@pytest.fixture
def plain_ops(monkeypatch):
    """Return a function that lets a module of mmcv.ops call our ops, whatever is installed."""
    ensure_mmcv_ops()

    def _plain_ops(name):
        module = importlib.import_module(f'mmcv.ops.{name}')
        monkeypatch.setattr(module, 'ext_module', SimpleNamespace(**mmcv_ops.OPS['pytorch']))
        return module

    return _plain_ops
