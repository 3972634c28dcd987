"""Image scale of a recipe for other data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from mmfocalnet.config import find_dicts
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.registry import type_name

_COCO_SIDE = 640  # longer side of most images of COCO, in pixels
_DEMO_SIDE = 320  # recipes for smaller images, such as the demos, are used up to this size
_SCALES = ('scale', 'scales')
_SIZES = ('crop_size', 'size', 'stride')  # of crops, of padding and of sliding windows


def set_image_scale(cfg: Config, size: tuple[int, int]) -> None:
    """Resize small images as the recipe resizes those of its own data.

    Recipes for COCO enlarge images of 640x480 to 1067x800. Images of half the size are enlarged to
    half of that. Recipes with mosaics, fixed input sizes or 900 proposals stay as they are.

    Args:
        cfg: The recipe.
        size: Median width and height of the images.
    """
    pipelines = list(_pipelines(cfg))
    longer = max(size)
    trained = _names([cfg.train_dataloader])
    if not longer or any('Mosaic' in name for name in trained):
        return
    if cfg.model.get('as_two_stage'):
        return  # DINO selects 900 proposals, and small images have fewer positions
    steps = find_dicts(cfg.get('test_dataloader') or {})
    tested = [step for step in steps if isinstance(step.get('scale'), (tuple, list))]
    if not all(step.get('keep_ratio') for step in tested):
        return  # the network has a fixed input size, as SSD
    old = max((max(step.scale) for step in tested), default=0)
    new = min(longer, max(old, _DEMO_SIDE))
    if old >= _COCO_SIDE:
        _multiply(cfg, longer / _COCO_SIDE)
        return
    if any('Random' in name and 'Resize' in name for name in trained):
        _multiply(cfg, new / old if old else 1.0)
        return
    scale = tuple(round(length * new / longer) for length in size)
    for split, steps in pipelines:
        _resize(steps, scale, after='Load' if split == 'train' else 'LoadImageFromFile')


def _pipelines(cfg: Config) -> Iterator[tuple[str, list]]:
    for split in ('train', 'val', 'test'):
        for dataset in find_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}):
            if dataset.get('pipeline'):
                yield split, dataset.pipeline


def _names(steps: list) -> list[str]:
    return [str(type_name(step)) for step in find_dicts(steps)]


def _resize(steps: list, scale: tuple[int, ...], after: str) -> None:
    """Set the scale of a pipeline; without a step that resizes, add one."""
    resizes = [step for step in find_dicts(steps) if type_name(step) == 'Resize']
    for step in resizes:
        step.scale = scale
    if not resizes and not any('Resize' in name or 'Crop' in name for name in _names(steps)):
        loads = [i for i, step in enumerate(steps) if any(after in name for name in _names([step]))]
        step = ConfigDict(type='Resize', scale=scale, keep_ratio=True)
        steps.insert(loads[-1] + 1 if loads else 0, step)


def _multiply(cfg: Config, factor: float) -> None:
    if factor > 0.9:
        return
    model = cfg.model
    parts = [cfg.get(f'{split}_dataloader') or {} for split in ('train', 'val', 'test')]
    parts += [cfg.get('tta_pipeline') or {}, model.get('data_preprocessor') or {}]
    parts.append(model.get('test_cfg') or {})
    for part in find_dicts(parts):
        for key in (*_SCALES, *_SIZES):
            if isinstance(part.get(key), (tuple, list)):
                part[key] = _scaled(part[key], factor, multiple=32 if key in _SIZES else 1)


def _scaled(value: Any, factor: float, multiple: int) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_scaled(v, factor, multiple) for v in value)
    return max(multiple, round(value * factor / multiple) * multiple)
