"""Whether a model's neck and heads take the channels that its FocalNet gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmfocalnet.errors import ConfigError
from mmfocalnet.models.focalnet import FocalNet

_HEADS = ('panoptic_head', 'decode_head', 'auxiliary_head', 'bbox_head', 'mask_head')


def check_channels(model: dict, backbone: FocalNet) -> None:
    """Compare ``in_channels`` of what follows the backbone with the widths of its stages.

    Args:
        model: Config of the detector or segmentor: its neck, or without one its heads, are
            looked at; settings that are not of the usual form (a list of channels, or one with
            ``in_index``) pass.
        backbone: The backbone built from the same config.

    Raises:
        ConfigError: If they differ.
    """
    widths = [backbone.num_features[stage] for stage in backbone.out_indices]
    for key, part in _followers(model):
        takes = part.get('in_channels')
        gives = _selected(widths, part.get('in_index'), takes)
        if gives is not None and takes != gives:
            raise ConfigError(
                f'model.{key}.in_channels is {takes}, but the backbone gives {gives} there '
                f'(stages {list(backbone.out_indices)}, embed_dim {backbone.num_features[0]}): '
                f'set it to {gives}.'
            )


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


def _selected(
    widths: list[int], index: int | Sequence[int] | None, takes: int | Sequence[int] | None
) -> int | list[int] | None:
    """The widths that a part takes; None where its settings do not say."""
    if isinstance(takes, (list, tuple)) and index is None:
        return widths
    try:
        if isinstance(index, int):
            return widths[index]
        return [widths[i] for i in index]
    except (IndexError, TypeError):
        return None
