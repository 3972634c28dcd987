"""Errors of a run: misspelt names and keys of the config, and where to look for other causes."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, Registry, root

from mmfocalnet.cli.error_handling import RunError
from mmfocalnet.config import find_dicts
from mmfocalnet.engine.hooks.atomic_checkpoint import LAST_CHECKPOINT
from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.registry import type_name

_UNREGISTERED = re.compile(r"""['"]?(\S+) is not in the (.+?) registry""")
_UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


@contextmanager
def run_errors(cfg: Config) -> Iterator[None]:
    """Report misspelt names and keys of the config, and where to look for other causes.

    Args:
        cfg: The config of the run.

    Raises:
        ConfigError: If the config has a name that is not registered, or a key that its class
            does not accept.
        RunError: If anything else fails, except user errors; it names the log file, the config
            and, after a checkpoint was saved, how to continue.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if mistake := find_misspelling(cfg, error):
            raise ConfigError(mistake) from error
        raise RunError(_where_to_look(cfg)) from error


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
        # The class of the message first: others may pass the key on.
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


def _where_to_look(cfg: Config) -> str:
    handlers = MMLogger.get_current_instance().handlers
    logs = [one.baseFilename for one in handlers if isinstance(one, logging.FileHandler)]
    log = f' The log is {logs[0]}.' if logs else ''
    pointer = Path(cfg.work_dir, LAST_CHECKPOINT)
    # An earlier run may have left the file.
    last = MessageHub.get_current_instance().get_info('last_ckpt')
    saved = pointer.is_file() and pointer.read_text() == last
    resume = ' Continue a training from its last checkpoint with --resume.' if saved else ''
    return f'The run of {cfg.filename} failed with the error above.{log}{resume}'
