"""Files of the generated sample sets, in the layouts of COCO, ADE20K and ImageNet."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mmfocalnet.arguments import integer
from mmfocalnet.datasets.shapes import (
    CLASSES,
    MAX_COUNT,
    THINGS,
    Sample,
    Segment,
    draw_image,
    height_width,
)
from mmfocalnet.errors import UserError

STAMP = 'shapes.json'
"""The file in a set that contains its parameters."""

# Increase it whenever the same parameters result in other files.
_FORMAT = 1
# Folder names of COCO and of ADE20K.
_FOLDERS = {'train': ('train2017', 'training'), 'val': ('val2017', 'validation')}
# Side of the square that is cropped, relative to the longer side of a shape's box.
_CROP_RATIO = 1.2
_JPEG_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 95)
_CATEGORIES = [
    {
        'id': id_,
        'name': name,
        'supercategory': 'shape' if name in THINGS else 'texture',
        'isthing': int(name in THINGS),
    }
    for id_, name in enumerate(CLASSES, start=1)
]


def make_shapes(
    out: str | os.PathLike[str],
    num_train: int = 600,
    num_val: int = 80,
    size: int | Sequence[int] = 160,
    seed: int = 0,
) -> Path:
    """Write the sample set in the layouts of COCO and ADE20K, unless it exists.

    ::

        out/shapes.json                                       # the parameters
        out/coco/{train,val}2017/000000000001.jpg
        out/coco/annotations/instances_{train,val}2017.json   # masks as compressed RLE
        out/coco/annotations/panoptic_{train,val}2017.json    # and the folders of PNG maps
        out/ade/{images,annotations}/{training,validation}/   # JPEG; PNG with labels 1 to 7

    The same arguments result in the same bytes (with the same NumPy and OpenCV). ``out`` appears
    when all files are written. Concurrent calls are safe.

    Args:
        out: Folder to create, missing or empty. Its parents are created too.
        num_train: Training images, 1 to 100000. Defaults to 600.
        num_val: Validation images, 1 to 100000. Defaults to 80.
        size: Side of the square images, or (height, width), in pixels, 64 to 2048. Defaults to
            160.
        seed: 0 or more. Defaults to 0.

    Returns:
        The absolute path of ``out``.

    Raises:
        UserError: If a number is out of range, or ``out`` contains something else, which is not
            changed.
        OSError: If the folder cannot be written.
    """
    parameters = {
        'format': _FORMAT,
        **_check_counts(num_train, num_val),
        'size': list(height_width(size)),
        'seed': integer('seed', seed, 0, 2**63),
    }
    return _write_once(out, parameters, _write_shapes)


def make_shape_crops(
    out: str | os.PathLike[str],
    num_train: int = 1200,
    num_val: int = 80,
    size: int = 64,
    seed: int = 1,
) -> Path:
    """Write crops of single shapes in ImageNet's layout, unless they exist.

    ::

        out/shapes.json                      # the parameters
        out/{train,val}/CLASS/00000_0.jpg    # indices of the image and of the shape in it

    The default seed differs from that of `make_shapes`, so that the default sets share no images.

    Args:
        out: Folder to create, as in `make_shapes`.
        num_train: Training images of 160x160 to crop, with 2 to 6 shapes each. Defaults to 1200.
        num_val: Validation images to crop. Defaults to 80.
        size: Side of the crops in pixels, 16 to 512. Defaults to 64.
        seed: 0 or more. Defaults to 1.

    Returns:
        The absolute path of ``out``. Raises as `make_shapes`.
    """
    parameters = {
        'format': f'crops {_FORMAT}',
        **_check_counts(num_train, num_val),
        'size': integer('size', size, 16, 512),
        'seed': integer('seed', seed, 0, 2**63),
    }
    return _write_once(out, parameters, _write_crops)


def _check_counts(num_train: int, num_val: int) -> dict[str, int]:
    counts = {'num_train': num_train, 'num_val': num_val}
    return {key: integer(key, value, 1, MAX_COUNT) for key, value in counts.items()}


def _write_once(
    out: str | os.PathLike[str], parameters: dict, write: Callable[[Path, dict], None]
) -> Path:
    """Write a set into a temporary folder and rename that to ``out``, unless ``out`` exists."""
    out = Path(out).resolve()
    if _is_complete(out, parameters):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'{out.name}.partial-', dir=out.parent) as folder:
        partial = Path(folder, 'set')
        partial.mkdir()
        (partial / STAMP).write_text(json.dumps(parameters) + '\n')
        write(partial, parameters)
        try:
            partial.rename(out)  # replaces an empty folder, fails on any other
        except OSError:
            if not _is_complete(out, parameters):  # by a concurrent call
                raise
    return out


def _is_complete(out: Path, parameters: dict) -> bool:
    """Whether ``out`` contains this set; False if it is missing or empty.

    Raises:
        UserError: If it contains anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / STAMP).read_text())
    except (OSError, ValueError):
        found = None
    if found != parameters:
        raise UserError(
            f'{out} contains {json.dumps(found) if found else "other files"}, expected '
            f'{json.dumps(parameters)}: remove it or choose another --out.'
        )
    return True


def _write_shapes(root: Path, parameters: dict) -> None:
    for split, (coco, ade) in _FOLDERS.items():
        annotations = f'coco/annotations/panoptic_{coco}'
        for folder in (f'coco/{coco}', annotations, f'ade/images/{ade}', f'ade/annotations/{ade}'):
            (root / folder).mkdir(parents=True)
        images, instances, panoptic = [], [], []
        for index in range(parameters[f'num_{split}']):
            sample = draw_image(index, split, parameters['size'], parameters['seed'])
            _write_sample(root, split, sample)
            height, width = sample.panoptic.shape
            name = f'{sample.image_id:012d}'
            images.append(
                dict(id=sample.image_id, file_name=f'{name}.jpg', height=height, width=width)
            )
            instances += _instance_records(sample)
            segments = [_segment_record(segment) for segment in sample.segments]
            panoptic.append(
                dict(image_id=sample.image_id, file_name=f'{name}.png', segments_info=segments)
            )
        _write_json(root, f'instances_{coco}', images, instances, _CATEGORIES[: len(THINGS)])
        _write_json(root, f'panoptic_{coco}', images, panoptic, _CATEGORIES)


def _write_sample(root: Path, split: str, sample: Sample) -> None:
    coco, ade = _FOLDERS[split]
    name = f'{sample.image_id:012d}'
    image = root / f'coco/{coco}/{name}.jpg'
    _write_image(image, sample.image, _JPEG_QUALITY)
    copy = root / f'ade/images/{ade}/{name}.jpg'
    try:
        os.link(image, copy)
    except OSError:  # not every file system has hard links
        shutil.copyfile(image, copy)
    # COCO's encoding: id = R + 256 G + 256^2 B.
    encoded = (sample.panoptic[..., None] >> np.array([0, 8, 16])) & 255
    _write_image(root / f'coco/annotations/panoptic_{coco}/{name}.png', encoded.astype(np.uint8))
    _write_image(root / f'ade/annotations/{ade}/{name}.png', sample.semantic)


def _instance_records(sample: Sample) -> list[dict]:
    from pycocotools import mask as coco_mask  # installed with mmdet, not with mmseg

    things = [segment for segment in sample.segments if segment.is_thing]
    masks = np.stack([sample.panoptic == segment.id for segment in things], axis=2)
    # RLE rather than polygons: exact, also for masks in several parts.
    runs = coco_mask.encode(np.asfortranarray(masks, np.uint8))
    return [
        {
            **_segment_record(segment),
            'image_id': sample.image_id,
            'segmentation': {'size': run['size'], 'counts': run['counts'].decode()},
        }
        for segment, run in zip(things, runs, strict=True)
    ]


def _segment_record(segment: Segment) -> dict:
    return {
        'id': segment.id,
        'category_id': segment.category_id,
        'bbox': list(segment.bbox),
        'area': segment.area,
        'iscrowd': 0,
    }


def _write_json(root: Path, name: str, images: list, annotations: list, categories: list) -> None:
    content = {
        'info': {'description': 'generated shapes', 'version': str(_FORMAT)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
    path = root / f'coco/annotations/{name}.json'
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


def _write_crops(root: Path, parameters: dict) -> None:
    for split in _FOLDERS:
        for name in THINGS:
            (root / split / name).mkdir(parents=True)
        for index in range(parameters[f'num_{split}']):
            sample = draw_image(index, split, seed=parameters['seed'])
            things = [segment for segment in sample.segments if segment.is_thing]
            for place, thing in enumerate(things):
                folder = root / split / THINGS[thing.category_id - 1]
                crop = _crop(sample.image, thing, parameters['size'])
                _write_image(folder / f'{index:05d}_{place}.jpg', crop, _JPEG_QUALITY)


def _crop(image: np.ndarray, shape: Segment, size: int) -> np.ndarray:
    """A square (size, size, 3) around a shape, shifted into the image at its border."""
    x, y, width, height = shape.bbox
    side = min(round(_CROP_RATIO * max(width, height)), *image.shape[:2])
    left = min(max(x + (width - side) // 2, 0), image.shape[1] - side)
    top = min(max(y + (height - side) // 2, 0), image.shape[0] - side)
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


def _write_image(path: Path, image: np.ndarray, options: Sequence[int] = ()) -> None:
    """Write (H, W) or RGB (H, W, 3) uint8. Unlike cv2.imwrite, raise if this fails."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(path.suffix, image, list(options))
    path.write_bytes(encoded.tobytes())
