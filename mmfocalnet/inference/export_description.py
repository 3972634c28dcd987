"""Read the JSON file that tools/export.py writes beside an exported model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfocalnet.errors import ConfigError
from mmfocalnet.inference.colors import find_palette
from mmfocalnet.text import short_repr, short_text

OUTPUTS = {
    'boxes': ('boxes', 'scores', 'labels'),
    'boxes and masks': ('boxes', 'scores', 'labels', 'masks'),
    'semantic': ('seg_logits',),
}
"""Names of the outputs by task."""

_FORMATS = {'.onnx': 'onnx', '.xml': 'openvino'}
_MAX_SIDE = 2**15  # OpenCV's limit


class Description(NamedTuple):
    """What an exported model expects and predicts.

    Attributes:
        task: A key of `OUTPUTS`.
        input_name: Name of the input.
        dtype: ``'uint8'`` or ``'float32'``.
        is_raw: Whether the input is normalized, (B, 3, H, W); otherwise it is the image,
            (B, H, W, 3).
        is_rgb: Whether the channels of the input are RGB, not BGR.
        size: Height and width of the input; None if it has any size.
        scale: Width and height to which the test pipeline scales images; None if it does not.
        keep_ratio: Whether scaling keeps the aspect ratio.
        mean: Mean of the pixels, BGR, float32 (3,).
        std: Their standard deviation, BGR, float32 (3,).
        classes: Names of the classes.
        palette: A color per class, RGB, 0 to 255.
        category_ids: Ids of the classes in the annotation file; None if they are unknown.
    """

    task: str
    input_name: str
    dtype: str
    is_raw: bool
    is_rgb: bool
    size: tuple[int, int] | None
    scale: tuple[int, int] | None
    keep_ratio: bool
    mean: np.ndarray
    std: np.ndarray
    classes: list[str]
    palette: list[tuple[int, int, int]]
    category_ids: list[int] | None


def read_description(model: Path) -> Description:
    """Read the description of an exported model: ``model.json`` beside ``model.onnx``.

    Raises:
        ConfigError: If it is missing, malformed, or describes another format or a backbone.
    """
    file = _File(model.with_suffix('.json'), model)
    file.get('format', lambda value: value == _FORMATS[model.suffix], _FORMATS[model.suffix])
    if file.get('task', lambda value: isinstance(value, str), 'a string') == 'features':
        raise ConfigError(
            f'{model} is a backbone, whose outputs are features, and predicts nothing. Export the '
            'model without --backbone-only.'
        )
    classes = [short_text(name)[:100] for name in file.get('classes', _is_names, 'a list of names')]
    mean, std = (
        np.array(file.get(f'normalization.{key}', check, 'a list of three numbers'), np.float32)
        for key, check in (('mean', _are_numbers), ('std', _are_positive))
    )
    reverse = -1 if file.choose('normalization.channels', 'RGB', 'BGR') == 'RGB' else 1
    size = file.get('size', _is_size, 'null, or height and width')
    scale = None
    if file.get('resize', lambda value: value is None or isinstance(value, dict), 'a dict or null'):
        scale = tuple(file.get('resize.scale', _are_sides, 'width and height'))
    return Description(
        task=file.choose('task', *OUTPUTS),
        input_name=file.get('input.name', lambda value: isinstance(value, str), 'a string'),
        dtype=file.choose('input.dtype', 'uint8', 'float32'),
        is_raw=file.choose('input.layout', 'BHWC', 'BCHW') == 'BCHW',
        is_rgb=file.choose('input.channels', 'RGB', 'BGR') == 'RGB',
        size=size and tuple(size),
        scale=scale,
        keep_ratio=bool(scale) and file.choose('resize.keep_ratio', True, False),
        mean=mean[::reverse],
        std=std[::reverse],
        classes=classes,
        palette=find_palette(file.get('palette', lambda _: True, ''), len(classes)),
        category_ids=file.get(
            'category_ids',
            lambda value: value is None or _is_list(value, len(classes), (int,)),
            'null, or an integer per class',
        ),
    )


class _File:
    """A JSON file of which each value is checked when it is read."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        try:
            self.content = json.loads(path.read_text(encoding='utf-8'))
        except OSError as error:
            raise ConfigError(
                f'{path} cannot be read ({error.strerror}). {model} needs the JSON file that '
                'tools/export.py wrote beside it: copy both.'
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f'{path} is not JSON ({short_text(error)}). {_EXPORT}') from error

    def get(self, key: str, is_valid: Callable[[Any], bool], expected: str) -> Any:
        """Return the value of a dotted key."""
        value = self.content
        for part in key.split('.'):
            value = value.get(part) if isinstance(value, dict) else None
        if not is_valid(value):
            raise ConfigError(
                f'{self.path}: {key} is {short_repr(value)}, expected {expected}. {_EXPORT}'
            )
        return value

    def choose(self, key: str, *choices: Any) -> Any:
        """Return the value of a dotted key that has one of a few values."""
        expected = ' or '.join(map(repr, choices))
        return self.get(key, lambda value: any(value == choice for choice in choices), expected)


_EXPORT = 'Export the model again with tools/export.py.'


def _is_names(value: Any) -> bool:
    return bool(value) and isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_list(value: Any, length: int, types: tuple[type, ...]) -> bool:
    is_list = isinstance(value, list) and len(value) == length
    return is_list and all(type(number) in types for number in value)


def _are_numbers(value: Any) -> bool:
    # Comparisons are false for NaN.
    return _is_list(value, 3, (int, float)) and all(-1e6 < number < 1e6 for number in value)


def _are_positive(value: Any) -> bool:
    return _are_numbers(value) and min(value) > 0


def _are_sides(value: Any) -> bool:
    return _is_list(value, 2, (int,)) and all(0 < side <= _MAX_SIDE for side in value)


def _is_size(value: Any) -> bool:
    return value is None or _are_sides(value)
