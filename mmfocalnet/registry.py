"""Registering classes in MMEngine's registries, and their names in configs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from mmengine.logging import print_log
from mmengine.registry import MODELS, Registry

from mmfocalnet.errors import ConfigError

Registered = TypeVar('Registered', bound=Callable)


def register(registry: Registry) -> Callable[[Registered], Registered]:
    """Register a class or function under its name, also when the package is imported again.

    Args:
        registry: A root registry of MMEngine.

    Returns:
        The decorator. It raises `ConfigError` if another package has registered that name.
    """

    def decorate(module: Registered) -> Registered:
        other = registry.module_dict.get(module.__name__)
        if other is not None and other.__module__ != module.__module__:
            raise ConfigError(
                f'{other.__module__} and {module.__module__} both register {module.__name__} in '
                f"MMEngine's registry {registry.name!r}: do not import both in one program."
            )
        registry.register_module(module=module, force=True)
        return module

    return decorate


def type_name(node: Any) -> str | None:
    """Name of the class or function that a part of a config builds, without module or scope.

    Args:
        node: A part of a config. Its ``type`` is a string, or in MMEngine's pure Python configs
            the class.

    Returns:
        The name; None if the part has no type.
    """
    kind = node.get('type') if isinstance(node, dict) else None
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', None)


def warn_if_shadowed(name: str = 'FocalNet') -> None:
    """Warn if mmdet or mmseg registers a model of the same name that shadows ours.

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
