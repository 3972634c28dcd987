"""Whether a model's neck and heads take the channels that its FocalNet gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focalnet import FocalNet
from mmfocalnet.registry import type_name

# What may stand right behind a backbone; those of mmseg choose features by `in_index`.
_HEADS = ('panoptic_head', 'decode_head', 'auxiliary_head')


def check_channels(model: dict, backbone: FocalNet) -> None:
    """Compare ``in_channels`` of what follows the backbone with the widths of its stages.

    Args:
        model: Config of the detector or segmentor. Its neck is looked at, with the RPN or
            dense head behind it, or without a neck its heads; settings of another form than
            mmdet's and mmseg's usual ones pass.
        backbone: The backbone built from the same config.

    Raises:
        ConfigError: If they differ, a head chooses a feature that is not there, or a
            `SimpleFeaturePyramid` gets more than one map or one of another stride than the
            anchors behind it are for.
    """
    _check_single_map(model, backbone)
    widths = [backbone.num_features[stage] for stage in backbone.out_indices]
    for setting, part in _followers(model):
        takes = part.get('in_channels')
        gives = _gives(setting, part, widths)
        if _as_list(takes) != gives and gives is not None:
            raise ConfigError(
                f'model.{setting}.in_channels is {takes}, but the backbone gives {gives} there '
                f'(stages {list(backbone.out_indices)}, embed_dim {backbone.num_features[0]}): '
                f'set it to {gives}.'
            )
    _check_behind_neck(model)


def _check_single_map(model: dict, backbone: FocalNet) -> None:
    neck = model.get('neck')
    if type_name(neck) != 'SimpleFeaturePyramid':
        return
    strides = [backbone.patch_embed.patch_size * 2**i for i in range(len(backbone.layers))]
    given = [strides[stage] for stage in backbone.out_indices]
    anchors = next(_anchor_strides(model), 4)
    fitting = [stage for stage, stride in enumerate(strides) if stride == 4 * anchors]
    if backbone.out_indices != tuple(fitting):
        change = f'out_indices={tuple(fitting)}' if fitting else "arch='base_iso' or its like"
        raise ConfigError(
            f'The SimpleFeaturePyramid of model.neck takes one map of stride {4 * anchors}, four '
            f'times the first of its heads, but the backbone gives strides {given}: give '
            f'model.backbone {change}.'
        )


def _anchor_strides(model: dict) -> Iterator[int]:
    """The first stride of the dense head behind the neck, where it is set."""
    for key in ('rpn_head', 'bbox_head'):
        head = model.get(key)
        generator = head.get('anchor_generator') if isinstance(head, dict) else None
        if generator and isinstance(generator['strides'][0], int):
            yield generator['strides'][0]


def _followers(model: dict) -> Iterator[tuple[str, dict]]:
    """What takes the backbone's features, with the name of its setting."""
    neck = model.get('neck')
    if neck:
        # Of several necks the first takes them.
        yield ('neck', neck) if isinstance(neck, dict) else ('neck.0', neck[0])
        return
    for key in _HEADS:
        head = model.get(key)
        if isinstance(head, dict):
            yield key, head
        elif head:
            yield from ((f'{key}.{i}', part) for i, part in enumerate(head))


def _gives(setting: str, part: dict, widths: list[int]) -> int | list[int] | None:
    """The widths that a part takes by its settings; None where these do not say."""
    takes, index = _as_list(part.get('in_channels')), _as_list(part.get('in_index'))
    if takes is None:
        return None
    if index is None:
        if isinstance(takes, list):
            return widths
        # mmseg's heads take the last feature if not told otherwise; a neck's number is its own.
        return None if setting.startswith('neck') else widths[-1]
    places = index if isinstance(index, list) else [index]
    wrong = [i for i in places if not -len(widths) <= i < len(widths)]
    if wrong:
        raise ConfigError(
            f'model.{setting}.in_index is {part["in_index"]}, but the backbone gives '
            f'{len(widths)} features: choose from 0 to {len(widths) - 1}.'
        )
    chosen = [widths[i] for i in places]
    return chosen if isinstance(index, list) else chosen[0]


def _as_list(setting: Any) -> Any:
    return list(setting) if isinstance(setting, (list, tuple)) else setting


def _check_behind_neck(model: dict) -> None:
    neck = model.get('neck')
    gives = neck.get('out_channels') if isinstance(neck, dict) else None
    for key in ('rpn_head', 'bbox_head'):
        head = model.get(key)
        takes = head.get('in_channels') if isinstance(head, dict) else None
        if isinstance(takes, int) and isinstance(gives, int) and takes != gives:
            raise ConfigError(
                f'model.{key}.in_channels is {takes}, but model.neck.out_channels is {gives}: '
                f'set it to {gives}.'
            )
