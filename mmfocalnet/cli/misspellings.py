"""Find misspelt names and keys of a config and suggest the most similar valid name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    HOOKS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    Registry,
    root,
)

from mmfocalnet.config import find_dicts
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import type_name

REGISTRIES = {
    'model.backbone': MODELS,
    'optim_wrapper.optimizer': OPTIMIZERS,
    'param_scheduler': PARAM_SCHEDULERS,
    'default_hooks': HOOKS,
    'custom_hooks': HOOKS,
    'train_dataloader.sampler': DATA_SAMPLERS,
}
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


def check_names(cfg: Config, *parts: str) -> None:
    """Check that the classes of some parts of a config are registered.

    Args:
        cfg: The config.
        *parts: Keys of `REGISTRIES`.

    Raises:
        ConfigError: If one is not; with the most similar name that is.
    """
    for part in parts:
        registry = REGISTRIES[part]
        with registry.switch_scope_and_registry(cfg.get('default_scope')) as scoped:
            for node in _nodes(cfg, part):
                name = node.get('type')
                if isinstance(name, str) and scoped.get(name) is None:
                    near = _nearest(name.rpartition('.')[2], _registered())
                    raise ConfigError(
                        f'{cfg.filename} has type={name!r} in {part}, which is not registered{near}'
                    )


def _nodes(cfg: Config, part: str) -> list[dict]:
    """The dict of a config under a dotted key, or the dicts of a list."""
    found: Any = cfg
    for key in part.split('.'):
        found = found.get(key) if isinstance(found, (Config, dict)) else None
    if part == 'default_hooks' and isinstance(found, dict):
        found = list(found.values())
    nodes = found if isinstance(found, (list, tuple)) else [found]
    return [node for node in nodes if isinstance(node, dict)]


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
