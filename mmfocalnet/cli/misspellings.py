"""Find misspelt names and keys of a config and suggest the most similar valid name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable

from mmengine.config import Config
from mmengine.registry import MODELS, Registry, root

from mmfocalnet.config import find_dicts
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import type_name

_UNREGISTERED = re.compile(r"""['"]?(\S+) is not in the (.+?) registry""")
_UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


def find_misspelling(cfg: Config, error: Exception) -> str | None:
    """Find the name or key of the config that MMEngine could not build.

    Args:
        cfg: The config.
        error: What building raised.

    Returns:
        An error message with the most similar name that exists; None for other errors.
    """
    if match := _UNREGISTERED.match(str(error)):
        name, registry = match.groups()
        near = _nearest(name.rpartition('.')[2], _registered())
        return f'{cfg.filename} has type={name!r}, which is not registered in {registry}{near}'
    if match := _UNEXPECTED.search(str(error)):
        name, key = match.groups()
        known = _registered()
        nodes = [node for node in find_dicts(list(cfg.values())) if key in node]
        # Check the class in the message first: other classes may only pass the key on.
        for node in sorted(nodes, key=lambda node: type_name(node) != name):
            owner = type_name(node)
            accepted = _parameters(known.get(owner, node.get('type')))
            if accepted and key not in accepted:
                near = _nearest(key, accepted | _parameters(known.get(name)))
                return f'{cfg.filename} has {key!r} in {owner}, which does not accept it{near}'
    return None


def check_backbone_name(cfg: Config) -> None:
    """Check that the backbone of the model is registered.

    Raises:
        ConfigError: If it is not; with the most similar name that is.
    """
    backbone = cfg.model.get('backbone')
    name = backbone.get('type') if isinstance(backbone, dict) else None
    if isinstance(name, str):
        scope = cfg.get('default_scope')
        with MODELS.switch_scope_and_registry(scope) as registry:
            if registry.get(name) is None:
                near = _nearest(name.rpartition('.')[2], _registered())
                raise ConfigError(
                    f'{cfg.filename} has model.backbone.type={name!r}, which is not registered'
                    f'{near}'
                )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f': did you mean {near[0]!r}?' if near else ': correct it.'


def _registered(registry: Registry | None = None) -> dict[str, object]:
    """Every registered class and function by its name."""
    found: dict[str, object] = {}
    for top in vars(root).values() if registry is None else registry.children.values():
        if isinstance(top, Registry):
            found.update(_registered(top))
            found.update(top.module_dict)
    return found


def _parameters(built: object) -> set[str]:
    """The keyword arguments of a class, including those of its base classes, or of a function."""
    functions = [vars(one).get('__init__') for one in getattr(built, '__mro__', ())] or [built]
    return {
        name
        for function in functions
        if inspect.isfunction(function)
        for name in inspect.signature(function).parameters
    }
