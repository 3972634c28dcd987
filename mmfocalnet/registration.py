"""Registering our classes in MMEngine's root registries, which mmdet's and mmseg's look up in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from mmengine.logging import print_log
from mmengine.registry import MODELS, Registry

from mmfocalnet.errors import ConfigError

Registered = TypeVar('Registered', bound=Callable)


def register(registry: Registry) -> Callable[[Registered], Registered]:
    """Register a class or function under its name; a second import of the package does it again.

    Args:
        registry: A root registry of MMEngine's.

    Returns:
        The decorator. It raises `ConfigError` if another one has the name already.
    """

    def decorate(module: Registered) -> Registered:
        other = registry.module_dict.get(module.__name__)
        if other is not None and other.__module__ != module.__module__:
            raise ConfigError(
                f'{other.__module__} has registered a {module.__name__} in the registry '
                f'{registry.name!r} of MMEngine, where {module.__module__} has its own: do not '
                'import both in one program.'
            )
        registry.register_module(module=module, force=True)
        return module

    return decorate


def warn_of_namesakes(name: str = 'FocalNet') -> None:
    """Say so where mmdet or mmseg have a model of the same name, which goes before ours there.

    Args:
        name: Name of the model. Defaults to ``'FocalNet'``, which mmdet's project XDecoder has.
    """
    for scope, registry in MODELS.children.items():
        other = registry.module_dict.get(name)
        if other is not None:
            print_log(
                f"In {scope}'s configs type='{name}' is that of {other.__module__}: write "
                f"type='mmengine.{name}' for the one of mmfocalnet.",
                logger='current',
                level=logging.WARNING,
            )
