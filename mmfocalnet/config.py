"""Reading config files and searching them."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import yaml
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.fileio import YamlHandler, register_handler
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils import get_object_from_string
from yaml.composer import ComposerError

from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.text import join_keys, short_repr

MAX_NODES = 10**6
"""Maximum number of values in a YAML config, with aliases expanded."""

# Settings that are no parameters of a runner. MMEngine or our tools read them from the config.
_OTHER_SETTINGS = {
    'activation_checkpointing',
    'auto_scale_lr',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}


@register_handler(['yaml', 'yml'])
class SafeYamlHandler(YamlHandler):
    """MMEngine's YAML handler, without tags that run code and with numbers such as ``5e-4``."""

    def load_from_fileobj(self, file: TextIO, **kwargs: Any) -> Any:
        """Read a file with a safe loader.

        Raises:
            ValueError: If aliases expand it beyond `MAX_NODES`, or contain themselves.
            YAMLError: If it is not YAML, or a dict has a key twice.
        """
        content = super().load_from_fileobj(file, Loader=_SafeLoader)
        if _count_nodes(content, {}) > MAX_NODES:
            raise ValueError(f'its aliases (*) expand to more than {MAX_NODES} values')
        return content


class _SafeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with the tuples of MMEngine's dumped configs."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == 'tag:yaml.org,2002:merge':
                continue
            name = (key.tag, key.value)
            if name in seen:
                fault = f'the key {short_repr(key.value)} is repeated'
                raise ComposerError(None, None, fault, key.start_mark)
            seen.add(name)
        return node

    def construct_tuple(self, node: yaml.SequenceNode) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


_SafeLoader.add_constructor('tag:yaml.org,2002:python/tuple', _SafeLoader.construct_tuple)
_SafeLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$'),
    list('-+.0123456789'),
)


def _count_nodes(node: Any, known: dict[int, float]) -> float:
    """Number of values in nested dicts and lists, infinite if one contains itself."""
    if not isinstance(node, (dict, list, tuple)):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until its children are counted
        children = node.values() if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_count_nodes(child, known) for child in children)
    return known[id(node)]


def read_config(path: str, import_modules: bool = True) -> Config:
    """Read a config file.

    Args:
        path: The file.
        import_modules: Import the modules of its ``custom_imports``. Defaults to True.

    Raises:
        ConfigError: If it, or a file it inherits from, is missing or cannot be read.
    """
    if not os.path.isfile(path):
        raise ConfigError(
            f'There is no config file {short_repr(path)}: specify the path of one, such as '
            'configs/mask_rcnn/focalnet_t_1x.py.'
        )
    try:
        cfg = Config.fromfile(path, import_custom_modules=import_modules)
        _find_hidden_classes(cfg)
    except RecursionError as error:
        raise ConfigError(
            f'{path} cannot be read as a config: it inherits from itself; correct its _base_ '
            'or that of a base config.'
        ) from error
    except (SystemExit, GeneratorExit) as error:
        raise ConfigError(
            f'{path} cannot be read as a config: remove the call of sys.exit().'
        ) from error
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(
            f'{path} cannot be read as a config ({type(error).__name__}: {reason}): '
            'compare it with those in configs/.'
        ) from error
    _set_scope(cfg)
    return cfg


def read_model_config(
    path: str, options: dict[str, Any] | None = None, import_modules: bool = True
) -> Config:
    """Read the config of a model.

    Args:
        path: The file.
        options: Values to override, by dotted key. Defaults to None: none.
        import_modules: As for `read_config`.

    Returns:
        The config, with a ``model`` that is a dict with a ``type``.

    Raises:
        ConfigError: As `read_config`, or if an override does not fit or there is no such model.
    """
    cfg = read_config(path, import_modules)
    override(cfg, options)
    if 'model' not in cfg:
        raise ConfigError(
            f'{path} has no model: specify a config to train or test, or add its _base_.'
        )
    if not isinstance(cfg.model, dict) or 'type' not in cfg.model:
        raise ConfigError(
            f'model of {path} must be a dict with a type, got {short_repr(cfg.model)}: see those '
            'in configs/_base_/models.'
        )
    return cfg


@contextmanager
def error_context(part: str, cfg: Config) -> Iterator[None]:
    """Convert exceptions due to a malformed part of a config to an error with the key of the part.

    Args:
        part: Key of the part, such as ``'train_dataloader'``.
        cfg: The config.

    Raises:
        ConfigError: If the part has a value of a wrong type.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f'{part} of {cfg.filename} is malformed ({type(error).__name__}: {error}): compare it '
            'with that of a config in configs/.'
        ) from error


def _find_hidden_classes(cfg: Config) -> None:
    """Import the classes that MMEngine does not find in its own dumped configs.

    MMEngine looks up ``mmdet.models.losses.smooth_l1_loss.L1Loss`` as an attribute of the function
    ``smooth_l1_loss``, which hides the module of the same name.
    """
    for node in find_dicts(list(cfg.values())):
        kind = node.get('type')
        if not isinstance(kind, str) or kind.count('.') < 2:
            continue
        module, _, name = kind.rpartition('.')
        with suppress(ImportError, AttributeError, ValueError):  # reported when they are built
            if not get_object_from_string(kind):
                pkgutil.resolve_name(f'{module}:{name}')
                node['type'] = LazyObject(module, name)


def _set_scope(cfg: Config) -> None:
    """Derive a missing scope from the class of the model, as in pure Python configs."""
    model = cfg.get('model')
    kind = model.get('type') if isinstance(model, dict) else None
    module = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    scope = str(module).partition('.')[0]
    if scope in ('mmdet', 'mmseg') and not cfg.get('default_scope'):
        cfg.default_scope = scope


def is_first_process(cfg: Config) -> bool:
    """Whether this is the first process of a launch, by the environment of its launcher.

    Args:
        cfg: The config, with ``launcher``.
    """
    ranks = dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    return os.environ.get(ranks.get(cfg.get('launcher'), 'RANK'), '0') == '0'


def override(cfg: Config, options: dict[str, Any] | None) -> None:
    """Merge the values of ``--cfg-options`` into a config.

    Args:
        cfg: The config.
        options: Values by dotted key; None: none.

    Raises:
        ConfigError: If a key is invalid, a misspelt setting, a variable whose value settings have,
            or the name of a nested setting.
    """
    try:
        _check_settings(cfg, options or {})
        cfg.merge_from_dict(options or {})
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'--cfg-options {options} is invalid for {cfg.filename} ({error}): '
            'specify KEY=VALUE with keys of the config, such as train_cfg.max_epochs=1.'
        ) from error


def _check_settings(cfg: Config, options: dict[str, Any]) -> None:
    """Check that options change settings, and nothing else that MMEngine would ignore."""
    if not all(part for key in options for part in key.split('.')):
        raise ValueError('a key or a part of a key is empty')
    settings = {
        parameter
        for runner in (Runner, FlexibleRunner)
        for parameter in inspect.signature(runner.__init__).parameters
    }
    for name in {key.partition('.')[0] for key in options} - settings - _OTHER_SETTINGS:
        near = difflib.get_close_matches(name, settings, n=1, cutoff=0.8)
        if near and name not in cfg:
            raise ConfigError(
                f'{cfg.filename} has no setting {name!r} that an option could change: did you mean '
                f'{near[0]!r}?'
            )
        parts = {key: _without_scopes(cfg[key]) for key in settings & cfg.keys()}
        meant = list(_find(name, _without_scopes(cfg.get(name)), parts))
        if meant and not options.keys() & set(meant):
            raise ConfigError(
                f'{name} is not a setting, so an option for it has no effect on {cfg.filename}. '
                f'Change these instead: {join_keys(sorted(meant))}.'
            )


def _without_scopes(node: Any) -> Any:
    """A copy without the scopes that MMEngine adds to what a config inherits from a package."""
    if isinstance(node, dict):
        return {k: _without_scopes(v) for k, v in node.items() if k != '_scope_'}
    return [_without_scopes(v) for v in node] if isinstance(node, (list, tuple)) else node


def _find(name: str, value: Any, node: Any, path: str = '') -> Iterator[str]:
    """Find the dotted keys of nested settings with a name or a value, except for plain numbers."""
    is_specific = bool(value) and isinstance(value, (str, list, dict))
    if path.endswith(f'.{name}') or (is_specific and node == value):
        yield path.removeprefix('.')
    elif isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _find(name, value, child, f'{path}.{key}')


def find_dicts(node: Any) -> Iterator[dict]:
    """Iterate over all dicts in a part of a config."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from find_dicts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from find_dicts(value)
