"""What a checkpoint says of itself besides tensors: settings that no shape tells."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from mmfocalnet.archs import find_arch
from mmfocalnet.errors import ConfigError

# The settings that change what a network computes and leave no trace in its tensors.
INVISIBLE = ('use_postln', 'normalize_modulator')
# In characters; those of mmdet have thousands, and parsed they take a hundred times the memory.
_LONGEST_CONFIG = 10**6


def told_settings(metadata: Mapping[str, Any]) -> dict[str, bool]:
    """Look up the settings that no key or shape tells.

    Args:
        metadata: Of `open_checkpoint`: what mmfocalnet's converter wrote, the training config
            of MMEngine or mmcv, or transformers' ``config.json``.

    Returns:
        Of ``use_postln`` and ``normalize_modulator`` those that are told.
    """
    for read in (_from_converter, _from_transformers, _from_training_config):
        settings = read(metadata)
        if settings:
            told = {key: settings[key] for key in INVISIBLE if key in settings}
            # Anyone may have written anything there; older JSON has 0 and 1.
            return {key: bool(v) for key, v in told.items() if isinstance(v, (bool, int))}
    return {}


def _from_converter(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = metadata.get('mmfocalnet')
    if not isinstance(ours, dict) or not isinstance(ours.get('backbone'), dict):
        return {}
    # What was assumed when converting is no better known for having been written down.
    assumed = ours.get('assumed')
    assumed = [key for key in assumed if isinstance(key, str)] if isinstance(assumed, list) else []
    return {k: v for k, v in ours['backbone'].items() if k not in assumed}


def _from_transformers(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    config = metadata.get('config.json')
    if not isinstance(config, dict) or config.get('model_type') != 'focalnet':
        return {}
    return dict(
        use_postln=config.get('use_post_layernorm', False),
        normalize_modulator=config.get('normalize_modulator', False),
    )


def _from_training_config(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    # MMEngine keeps the config's text as "cfg", mmcv 1 as "config".
    text = metadata.get('cfg', metadata.get('config'))
    usual = isinstance(text, str) and len(text) <= _LONGEST_CONFIG
    found = list(_backbones(text)) if usual else []
    # A teacher and a student may differ; then neither is known.
    return found[0] if found and all(settings == found[0] for settings in found) else {}


def _backbones(text: str) -> Iterator[dict[str, Any]]:
    """Every ``dict(type='FocalNet', ...)`` of a config's text, which is parsed and never run."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        constants = {
            keyword.arg: keyword.value.value
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        if str(constants.get('type')).rpartition('.')[2] == 'FocalNet':
            yield _with_defaults(constants)


def _with_defaults(constants: dict[str | None, Any]) -> dict[str, Any]:
    try:
        arch = find_arch(constants['arch']) if constants.get('arch') else {}
    except ConfigError:  # of a later version
        return {}
    settings = {**arch, **{k: v for k, v in constants.items() if v is not None}}
    return {key: settings.get(key, False) for key in INVISIBLE}
