"""Checks that the neck and heads of a config fit the channels of its FocalNet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.logging import print_log

from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focalnet import FocalNet
from mmfocalnet.registry import type_name

# Heads that may follow a backbone directly; those of mmseg select features by `in_index`.
_HEADS = ('panoptic_head', 'decode_head', 'auxiliary_head')
_DENSE_HEADS = ('rpn_head', 'bbox_head')
# Necks known to read the features in order and to give `out_channels` at each level.
_KNOWN_NECKS = ('ChannelMapper', 'FPN', 'PAFPN', 'SimpleFeaturePyramid')


def check_channels(model: dict, backbone: FocalNet) -> None:
    """Compare ``in_channels`` of the modules after the backbone with the widths of its stages.

    Logs a warning where the channels differ but the type of the neck does not determine them.

    Args:
        model: Config of the detector or segmentor. The neck and the RPN or dense head after it are
            checked; without a neck, the heads. Forms of settings that mmdet and mmseg do not use
            are not checked.
        backbone: The backbone built from the same config.

    Raises:
        ConfigError: If the channels differ, a head selects a feature that does not exist, or a
            `SimpleFeaturePyramid` gets several maps, or a map whose stride does not match the
            anchors.
    """
    _check_single_map(model, backbone)
    widths = [backbone.num_features[stage] for stage in backbone.out_indices]
    for key, module in _modules_after_backbone(model):
        expected = _expected_channels(key, module, widths)
        given = _as_list(module.get('in_channels'))
        if expected is None or given == expected:
            continue
        message = (
            f'model.{key}.in_channels is {module["in_channels"]}, but the backbone gives '
            f'{expected} channels (stages {list(backbone.out_indices)}, embed_dim '
            f'{backbone.num_features[0]})'
        )
        if not key.startswith('neck') or type_name(module) in _KNOWN_NECKS:
            raise ConfigError(f'{message}: set it to {expected}.')
        # Some necks read the features from the coarsest to the finest, such as YOLOV3Neck.
        if given != widths[::-1]:
            print_log(f'{message}.', logger='current', level=logging.WARNING)
    _check_heads_after_neck(model)


def _check_single_map(model: dict, backbone: FocalNet) -> None:
    if type_name(model.get('neck')) != 'SimpleFeaturePyramid':
        return
    strides = [backbone.patch_embed.patch_size * 2**i for i in range(len(backbone.layers))]
    required = 4 * _first_anchor_stride(model)
    fitting = tuple(stage for stage, stride in enumerate(strides) if stride == required)
    if backbone.out_indices != fitting:
        fix = f'out_indices={fitting}' if fitting else "an iso architecture, such as 'base_iso'"
        raise ConfigError(
            f'The SimpleFeaturePyramid of model.neck requires one map of stride {required}, but '
            f'the backbone gives strides {[strides[stage] for stage in backbone.out_indices]}: '
            f'set {fix} in model.backbone.'
        )


def _first_anchor_stride(model: dict) -> int:
    """Stride of the first level of the dense head after the neck; 4 if it is not set."""
    for key in _DENSE_HEADS:
        head = model.get(key)
        generator = head.get('anchor_generator') if isinstance(head, dict) else None
        if generator and isinstance(generator['strides'][0], int):
            return generator['strides'][0]
    return 4


def _modules_after_backbone(model: dict) -> Iterator[tuple[str, dict]]:
    """Configs of the modules that get the backbone's features, with their keys."""
    keys = ['neck'] if model.get('neck') else _HEADS
    for key in keys:
        module = model.get(key)
        if isinstance(module, dict):
            yield key, module
        elif module:
            # Of several necks only the first gets the backbone's features.
            modules = module[:1] if key == 'neck' else module
            yield from ((f'{key}.{i}', part) for i, part in enumerate(modules))


def _expected_channels(key: str, module: dict, widths: list[int]) -> int | list[int] | None:
    """The right ``in_channels`` of a module; None if its config does not determine them."""
    channels, index = _as_list(module.get('in_channels')), _as_list(module.get('in_index'))
    if channels is None:
        return None
    if index is None:
        if isinstance(channels, list):
            return widths
        # By default mmseg's heads use the last feature. A neck's integer has another meaning.
        return None if key.startswith('neck') else widths[-1]
    indices = index if isinstance(index, list) else [index]
    if not all(-len(widths) <= i < len(widths) for i in indices):
        raise ConfigError(
            f'model.{key}.in_index is {module["in_index"]}, but the backbone gives '
            f'{len(widths)} features: choose from 0 to {len(widths) - 1}.'
        )
    selected = [widths[i] for i in indices]
    return selected if isinstance(index, list) else selected[0]


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _check_heads_after_neck(model: dict) -> None:
    neck = model.get('neck')
    output = neck.get('out_channels') if type_name(neck) in _KNOWN_NECKS else None
    for key in _DENSE_HEADS:
        head = model.get(key)
        channels = head.get('in_channels') if isinstance(head, dict) else None
        if isinstance(channels, int) and isinstance(output, int) and channels != output:
            raise ConfigError(
                f'model.{key}.in_channels is {channels}, but model.neck.out_channels is {output}: '
                f'set it to {output}.'
            )
