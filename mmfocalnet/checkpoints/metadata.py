"""Read settings that keys and shapes do not show from a checkpoint's metadata."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from mmfocalnet.archs import find_arch
from mmfocalnet.errors import ConfigError

METADATA_SETTINGS = ('use_postln', 'normalize_modulator')
"""Settings that change what a network computes, but not the keys and shapes of its tensors."""

# In characters. Parsing takes a hundred times the memory; configs of mmdet have thousands.
_MAX_CONFIG_LENGTH = 10**6


def read_settings(metadata: Mapping[str, Any]) -> dict[str, bool]:
    """Read ``use_postln`` and ``normalize_modulator`` from the metadata.

    Args:
        metadata: Of `open_checkpoint`: that of mmfocalnet's converter, the training config of
            MMEngine or mmcv, or transformers' ``config.json``.

    Returns:
        The settings that the metadata specify.
    """
    for read in (_from_converter, _from_transformers, _from_training_config):
        settings = read(metadata)
        if settings:
            found = {key: settings[key] for key in METADATA_SETTINGS if key in settings}
            # Values may have any type; old JSON files have 0 and 1.
            return {key: bool(v) for key, v in found.items() if isinstance(v, (bool, int))}
    return {}


def _from_converter(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = metadata.get('mmfocalnet')
    if not isinstance(ours, dict) or not isinstance(ours.get('backbone'), dict):
        return {}
    # A setting that the converter assumed is still an assumption.
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
    # MMEngine stores the text of the config as "cfg", mmcv 1 as "config".
    text = metadata.get('cfg', metadata.get('config'))
    if not isinstance(text, str) or len(text) > _MAX_CONFIG_LENGTH:
        return {}
    found = list(_backbones(text))
    # Backbones that differ, such as teacher and student, leave the setting unknown.
    return found[0] if found and all(settings == found[0] for settings in found) else {}


def _backbones(text: str) -> Iterator[dict[str, Any]]:
    """Settings of each ``dict(type='FocalNet', ...)`` in a config, parsed and never executed."""
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
    except ConfigError:  # an architecture of a later version
        return {}
    settings = {**arch, **{k: v for k, v in constants.items() if v is not None}}
    return {key: settings.get(key, False) for key in METADATA_SETTINGS}
