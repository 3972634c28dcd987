"""Inputs to check an exported file with."""

from __future__ import annotations

from typing import Any

import cv2
import mmcv
import numpy as np
import torch

from mmfocalnet.deployment.formats import MIN_SIDE
from mmfocalnet.deployment.graph import ExportGraph
from mmfocalnet.errors import UserError

_RANDOM_SIZE = (480, 640)


def random_image() -> np.ndarray:
    """Draw an image of smooth random colors, BGR, uint8, (480, 640, 3)."""
    height, width = _RANDOM_SIZE
    colors = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    return cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC)


def make_inputs(
    graph: ExportGraph,
    image: np.ndarray,
    *,
    dtype: str,
    size: tuple[int, int] | None,
    resize: dict[str, Any] | None,
) -> list[np.ndarray]:
    """Make the inputs of a graph from an image.

    Args:
        graph: The graph.
        image: BGR, uint8, (H, W, 3).
        dtype: ``'uint8'`` or ``'float32'``.
        size: Height and width of the input: the image is scaled to fit into it, and padded. None
            for a dynamic graph.
        resize: The scaling of the test pipeline for a dynamic graph.

    Returns:
        One batch of one image; for a dynamic graph batches of one and two images of the size of the
        test pipeline and two others.
    """
    if size is not None:
        return [_to_input(graph, [_fit(image, size, graph)], dtype)]
    if resize is not None:
        scale = _rescale if resize['keep_ratio'] else mmcv.imresize
        image = scale(image, tuple(resize['scale']))
    height, width = image.shape[:2]
    # One of about half the area, and one of the other orientation.
    sizes = [(height, width), (height * 2 // 3 + 1, width * 3 // 4 + 2), (width // 2, height // 3)]
    inputs = []
    for new_height, new_width in sizes:
        shape = max(new_width, MIN_SIDE), max(new_height, MIN_SIDE)
        scaled = mmcv.imresize(image, shape)
        inputs += [
            _to_input(graph, images, dtype) for images in ([scaled], [scaled, scaled[:, ::-1]])
        ]
    return inputs


def _fit(image: np.ndarray, size: tuple[int, int], graph: ExportGraph) -> np.ndarray:
    """Scale an image to fit into a size (height, width), and pad it with the mean color."""
    scaled = _rescale(image, min(size[0] / image.shape[0], size[1] / image.shape[1]))
    mean = graph.preprocessing.mean.flatten().round().tolist()
    color = mean[::-1] if graph.preprocessing.channels == 'RGB' else mean
    return mmcv.impad(scaled, shape=size, pad_val=tuple(color))


def _rescale(image: np.ndarray, scale: float | tuple[int, int]) -> np.ndarray:
    """Scale an image by a factor, or to fit into two sides, as mmcv's ``imrescale``."""
    height, width = image.shape[:2]
    size = mmcv.rescale_size((width, height), scale)
    if min(size) < 1:
        raise UserError(
            f'The image of {width}x{height} pixels is too narrow to scale. Choose another --image.'
        )
    return mmcv.imresize(image, size)


def _to_input(graph: ExportGraph, images: list[np.ndarray], dtype: str) -> np.ndarray:
    batch = np.stack(images)
    if graph.raw:
        return graph.preprocessing(torch.from_numpy(batch)).numpy()
    return batch.astype(dtype)
