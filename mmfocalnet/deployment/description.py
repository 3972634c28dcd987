"""The JSON file beside an exported file: what it expects and what its outputs mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.deployment.graph import ExportGraph
from mmfocalnet.registry import type_name
from mmfocalnet.version import __version__

_OUTPUTS = {
    'boxes': 'x1, y1, x2, y2 in pixels of the input',
    'scores': 'descending, 0 where there is no detection',
    'labels': 'indices into classes',
    'masks': 'probabilities inside the box',
    'seg_logits': 'logits or scores of the classes',
}


def describe(
    graph: ExportGraph,
    outputs: Mapping[str, np.ndarray],
    dtype: str,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Describe a graph; `tools/infer.py` reads it.

    Args:
        graph: The graph.
        outputs: Its outputs for one input.
        dtype: ``'uint8'`` or ``'float32'``.
        size: Height and width of the input; None if they are dynamic.

    Returns:
        The content of the JSON file that depends on the graph.
    """
    source = graph.preprocessing
    layout, channels = ('BCHW', source.channels) if graph.raw else ('BHWC', 'BGR')
    return {
        'mmfocalnet': __version__,
        'task': _task(graph),
        'input': {'name': 'image', 'dtype': dtype, 'layout': layout, 'channels': channels},
        'size': size and list(size),
        'normalization': {
            'in_graph': not graph.raw,
            'mean': _short(source.mean),
            'std': _short(source.std),
            'channels': source.channels,
        },
        'outputs': {
            name: f'{_shape(name, values)} {values.dtype}: {_meaning(name, graph)}'
            for name, values in outputs.items()
        },
    }


def find_resize(cfg: Config) -> dict[str, Any] | None:
    """Find the scaling of the images in the test pipeline of a config.

    Returns:
        ``scale``, width and height, and ``keep_ratio``; None if there is no such step.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    steps = (next(find_datasets(dataset)).get('pipeline') or ()) if dataset else ()
    for step in steps:
        scale = step.get('scale') if type_name(step) in ('Resize', 'FixScaleResize') else None
        if scale is not None:
            scale = [scale, scale] if isinstance(scale, int) else list(scale)
            return {'scale': scale, 'keep_ratio': bool(step.get('keep_ratio', False))}
    return None


def json_path(path: Path) -> Path:
    """The JSON file beside an exported file."""
    return path.with_suffix('.json')


def _task(graph: ExportGraph) -> str:
    names = graph.output_names
    if 'boxes' in names:
        return 'boxes and masks' if 'masks' in names else 'boxes'
    return 'semantic' if 'seg_logits' in names else 'features'


def _shape(name: str, values: np.ndarray) -> str:
    fixed = (
        values.shape[1:]
        if name in ('boxes', 'scores', 'labels', 'masks')
        else (values.shape[1], *(('H', 'W') if name == 'seg_logits' else ('h', 'w')))
    )
    return f'({", ".join(map(str, ("B", *fixed)))})'


def _meaning(name: str, graph: ExportGraph) -> str:
    padded = f'the input padded to multiples of {graph.preprocessing.divisor}'
    return _OUTPUTS.get(name, f'features of {padded}')


def _short(values: Any) -> list[float]:
    """The numbers as they are in the config, not as rounded to float32."""
    return [float(f'{value:.7g}') for value in values.flatten().tolist()]
