"""The generated shapes one by one, in folders per class: a small set to classify.

Each picture is cut out of an image of `mmfocalnet.datasets.draw_image` around one shape, with
what lies behind and in front of it, so that a backbone learns here what a detector of the shapes
needs.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from mmfocalnet.datasets.shapes import (
    MAX_COUNT,
    THINGS,
    Segment,
    draw_image,
    whole_number,
    write_once,
    write_picture,
)

# Raise it whenever the same parameters would give other files.
_FORMAT = 1
# Side of the square that is cut out, as a multiple of the longer side of a shape's box.
_MARGIN = 1.2


def make_shape_crops(
    out: str | os.PathLike[str],
    num_train: int = 1200,
    num_val: int = 80,
    size: int = 64,
    seed: int = 1,
) -> Path:
    """Write the shapes of generated images in ImageNet's layout, unless they are there already.

    ::

        out/shapes.json                      # the parameters
        out/{train,val}/CLASS/00000_0.jpg    # image and place in it

    ``out`` appears only when all of it is written. The default seed is not that of
    `make_shapes`, so that none of these shapes is in an image of the detectors' default set.

    Args:
        out: Folder to make, missing or empty. Its parents are made too.
        num_train: Images of 160x160 whose shapes are cut out for training, 2 to 6 of each.
        num_val: Likewise for validation.
        size: Side of the pictures in pixels, 16 to 512; each shape nearly fills its own.
        seed: 0 or more.

    Returns:
        The absolute path of ``out``.

    Raises:
        UserError: A number is out of range, or ``out`` holds something else, which is left
            as it is.
        OSError: The folder cannot be written.
    """
    parameters = {
        'format': f'crops {_FORMAT}',
        'num_train': whole_number('num_train', num_train, 1, MAX_COUNT),
        'num_val': whole_number('num_val', num_val, 1, MAX_COUNT),
        'size': whole_number('size', size, 16, 512),
        'seed': whole_number('seed', seed, 0, 2**63),
    }
    return write_once(out, parameters, _write_crops)


def _write_crops(root: Path, parameters: dict) -> None:
    for split in ('train', 'val'):
        for name in THINGS:
            (root / split / name).mkdir(parents=True)
        for index in range(parameters[f'num_{split}']):
            sample = draw_image(index, split, seed=parameters['seed'])
            things = [segment for segment in sample.segments if segment.is_thing]
            for place, thing in enumerate(things):
                crop = _cut_out(sample.image, thing, parameters['size'])
                folder = root / split / THINGS[thing.category_id - 1]
                write_picture(
                    folder / f'{index:05d}_{place}.jpg', crop, [cv2.IMWRITE_JPEG_QUALITY, 95]
                )


def _cut_out(image: np.ndarray, shape: Segment, size: int) -> np.ndarray:
    """A square (size, size, 3) around a shape; at the border it is moved into the image."""
    x, y, width, height = shape.bbox
    side = min(round(_MARGIN * max(width, height)), *image.shape[:2])
    left = min(max(x + (width - side) // 2, 0), image.shape[1] - side)
    top = min(max(y + (height - side) // 2, 0), image.shape[0] - side)
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
