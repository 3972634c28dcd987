"""Registration in MMEngine when it is first used, so that importing the package is fast."""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.util import find_spec
from typing import Any

from mmfocalnet.compat import ensure_mmcv_ops, ensure_panopticapi
from mmfocalnet.compat.module_finder import ImportTrigger, ModulePatch

_USERS_OF_PANOPTICAPI = ('mmdet.apis', 'mmdet.datasets', 'mmdet.evaluation')


def register_on_first_use() -> None:
    """Register all classes when a registry is first searched; now if MMEngine is imported.

    Not when MMEngine is imported: our modules and mmcv import MMEngine, and cannot be imported
    again until they are complete.

    Raises:
        ImportError: If mmcv is not installed.
    """
    if find_spec('mmcv') is None:
        raise ImportError(
            'mmfocalnet needs mmcv: install `mmfocalnet[onedl]` (the maintained forks) or '
            '`mmfocalnet[openmmlab]` (upstream) with pip.'
        )
    ModulePatch('mmengine.runner.checkpoint', _register_schemes).install()
    if 'mmengine' in sys.modules:
        _register()
        return
    ImportTrigger(('mmcv.ops',), ensure_mmcv_ops).install()
    ImportTrigger(_USERS_OF_PANOPTICAPI, ensure_panopticapi).install()
    ModulePatch('mmengine.registry.registry', _register_before_search).install()


def _register() -> None:
    importlib.import_module('mmfocalnet.registered')


def _register_before_search(module: Any) -> None:
    search = module.Registry.get

    @functools.wraps(search)
    def register_and_search(self: Any, key: str) -> Any:
        _register()
        return search(self, key)

    module.Registry.get = register_and_search


def _register_schemes(_: Any) -> None:
    importlib.import_module('mmfocalnet.checkpoints.url_schemes')
