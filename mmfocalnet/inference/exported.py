"""Predict with a model that tools/export.py has written, by ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.image import rescale_size

from mmfocalnet.deployment.runtimes import Runtime, load_runtime
from mmfocalnet.errors import CheckpointError
from mmfocalnet.inference.export_description import OUTPUTS, Description, read_description
from mmfocalnet.inference.images import ImageError, check_image
from mmfocalnet.inference.prediction import Prediction

# As mask_thr_binary of mmdet's configs.
MASK_THRESHOLD = 0.5


class _Input(NamedTuple):
    """An image and the array that the graph receives for it."""

    image: np.ndarray
    array: np.ndarray
    size: tuple[int, int]  # width and height of the image in the array, without padding


class ExportedPredictor:
    """Predict with an exported model; a replacement for `mmfocalnet.inference.Predictor`.

    Images are scaled as the test pipeline does. If the input of the graph has a fixed size, they
    are scaled further down to fit into it, and padded at the right and the bottom with the mean of
    the normalization.

    Args:
        path: The file that tools/export.py wrote, ``.onnx`` or ``.xml``, with its JSON file beside
            it. No code in it is executed.
        device: ``'cpu'``, or for ONNX files such as ``'cuda:0'``. Defaults to ``'cpu'``.

    Attributes:
        task: ``'boxes'``, ``'boxes and masks'`` or ``'semantic'``.
        classes: Names of the classes.
        palette: A color per class, RGB, 0 to 255.
        things: None, because there are no panoptic maps.

    Raises:
        CheckpointError: If the file is missing, damaged, of ``torch.export``, or does not match its
            JSON file.
        ConfigError: If the JSON file is missing or malformed, the model is a backbone, or the
            device is unavailable.
        UserError: If the runtime is not installed.
    """

    things = None

    def __init__(self, path: str | os.PathLike, device: str = 'cpu') -> None:
        self.path = Path(path)
        self.runtime = load_runtime(self.path, device)
        self.description = read_description(self.path)
        self.task = self.description.task
        self.classes = self.description.classes
        self.palette = self.description.palette
        _check_graph(self.path, self.runtime, self.description)

    def category_ids(self) -> tuple[list[int], Path | None]:
        """An id per class, and the JSON file that contains them, if any."""
        ids = self.description.category_ids
        if ids:
            return ids, self.path.with_suffix('.json')
        first = 0 if self.task == 'semantic' else 1
        return list(range(first, first + len(self.classes))), None

    def predict(self, images: Sequence[np.ndarray], score_thr: float = 0.3) -> list[Prediction]:
        """Predict images; as `mmfocalnet.inference.Predictor.predict`.

        Raises:
            ImageError: If an image is not a BGR uint8 array (H, W, 3), or too narrow to scale.
        """
        inputs = [self._prepare(image) for image in images]
        return [
            self._to_prediction(input_, outputs, score_thr)
            for _, group in groupby(inputs, key=lambda input_: input_.array.shape)
            for input_, outputs in self._run(list(group))
        ]

    def _run(self, inputs: list[_Input]) -> Iterator[tuple[_Input, dict[str, np.ndarray]]]:
        """Yield each input with its outputs; in one batch if the graph accepts batches."""
        length = self.runtime.input.shape[0] or len(inputs)
        for start in range(0, len(inputs), length):
            batch = inputs[start : start + length]
            outputs = self.runtime(np.stack([input_.array for input_ in batch]))
            for index, input_ in enumerate(batch):
                yield input_, {name: values[index] for name, values in outputs.items()}

    def _prepare(self, image: np.ndarray) -> _Input:
        check_image(image)
        size = _scaled_size(image, self.description)
        if min(size) < 1:
            raise ImageError(
                f'An image of {image.shape[1]}x{image.shape[0]} pixels is too narrow to scale for '
                f'{self.path}. Crop it.'
            )
        return _Input(image, _to_array(mmcv.imresize(image, size), self.description), size)

    def _to_prediction(
        self, input_: _Input, outputs: dict[str, np.ndarray], score_thr: float
    ) -> Prediction:
        image = input_.image
        make = partial(Prediction, self.task, image, self.classes, self.palette, score_thr)
        if self.task == 'semantic':
            logits = outputs['seg_logits']
            self._check_classes(len(logits))
            return make(semantic=semantic_map(logits, input_.size, image.shape[:2]))
        fields = self._detections(outputs, input_)
        self._check_classes(fields['labels'].max(initial=0) + 1)
        return make(**fields)

    def _check_classes(self, count: int) -> None:
        if count > len(self.classes):
            raise CheckpointError(
                f'{self.path} predicts at least {count} classes, but its JSON file has '
                f'{len(self.classes)}. Export the model again.'
            )

    def _detections(self, outputs: dict[str, np.ndarray], input_: _Input) -> dict[str, Any]:
        height, width = input_.image.shape[:2]
        factors = np.divide(input_.size, (width, height))
        boxes = outputs['boxes'] / np.tile(factors, 2).astype(np.float32)
        # Scores of 0 fill the arrays; boxes may be in the padding.
        kept = (outputs['scores'] > 0) & (boxes[:, :2] <= (width, height)).all(1)
        boxes, masks = boxes[kept], None
        if self.task == 'boxes and masks':
            masks = paste_masks(outputs['masks'][kept], boxes, (height, width))
        return dict(
            boxes=boxes.clip(0, np.array([width, height] * 2, boxes.dtype)),
            labels=outputs['labels'][kept],
            scores=outputs['scores'][kept],
            masks=masks,
        )


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale masks to their boxes in an image, as mmdet does.

    Args:
        masks: Probabilities inside the boxes, (N, h, w).
        boxes: (N, 4) left, top, right, bottom in pixels; they may exceed the image.
        size: Height and width of the image.

    Returns:
        (N, H, W) bool.
    """
    pasted = np.zeros((len(masks), *size), bool)
    for image, mask, (left, top, right, bottom) in zip(pasted, masks, boxes, strict=True):
        rows, row_weights = _interpolation(top, bottom, len(mask), size[0])
        columns, column_weights = _interpolation(left, right, mask.shape[1], size[1])
        image[rows, columns] = row_weights @ mask @ column_weights.T >= MASK_THRESHOLD
    return pasted


def _interpolation(start: float, end: float, length: int, limit: int) -> tuple[slice, np.ndarray]:
    """Interpolate values of ``length`` cells between two edges at the pixels of an image.

    Returns:
        The pixels between the edges, and their bilinear weights (pixels, length).
    """
    first = max(0, int(np.floor(start)))
    last = max(first, min(limit, int(np.ceil(end))))
    pixels = np.arange(first, last, dtype=np.float32) + 0.5
    cells = (pixels - start) / max(end - start, 1e-6) * length - 0.5
    weights = 1 - np.abs(cells[:, None] - np.arange(length, dtype=np.float32))
    return np.s_[first:last], weights.clip(0)


def semantic_map(
    logits: np.ndarray, unpadded: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Scale logits to an image and return the best class of each pixel, as mmseg does.

    Args:
        logits: (C, h, w).
        unpadded: Width and height of the part of them that shows the image.
        size: Height and width of the image.

    Returns:
        (H, W) int64.
    """
    labels = np.zeros(size, np.int64)
    best = np.full(size, -np.inf, np.float32)
    # Class by class, because the scaled logits of all classes may take gigabytes.
    for label, values in enumerate(logits[:, : unpadded[1], : unpadded[0]]):
        scaled = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
        better = scaled > best
        labels[better], best[better] = label, scaled[better]
    return labels


def _scaled_size(image: np.ndarray, description: Description) -> tuple[int, int]:
    """Width and height to which an image is scaled."""
    height, width = image.shape[:2]
    size = (width, height)
    if description.scale:
        keep = description.keep_ratio
        size = rescale_size(size, description.scale) if keep else description.scale
    if description.size is None:
        return size
    max_height, max_width = description.size
    if size[0] <= max_width and size[1] <= max_height:
        return size
    if description.scale and not description.keep_ratio:
        return min(size[0], max_width), min(size[1], max_height)
    return rescale_size((width, height), min(max_width / width, max_height / height))


def _to_array(image: np.ndarray, description: Description) -> np.ndarray:
    """Pad a scaled image, BGR (H, W, 3), and normalize it unless the graph does."""
    mean = description.mean if description.dtype == 'float32' else description.mean.round()
    height, width = image.shape[:2]
    array = np.empty((*(description.size or (height, width)), 3), description.dtype)
    array[:height, :width] = image
    array[height:] = array[:, width:] = mean
    if description.is_raw:
        array = (array - description.mean) / description.std
    if description.is_rgb:
        array = array[..., ::-1]
    return array.transpose(2, 0, 1) if description.is_raw else array


def _check_graph(path: Path, runtime: Runtime, description: Description) -> None:
    """Raise an error if a graph does not match its JSON file."""
    found = runtime.input
    size = description.size or (None, None)
    image = (3, *size) if description.is_raw else (*size, 3)
    if (found.name, found.dtype) != (description.input_name, description.dtype):
        problem = (
            f'its input is {found.name} of {found.dtype}, not {description.input_name} of '
            f'{description.dtype}'
        )
    elif found.shape[1:] != image or found.shape[0] not in (None, 1):
        problem = f'the shape of its input is {found.shape}, expected {("B", *image)}'
    elif missing := set(OUTPUTS[description.task]) - runtime.output_names:
        problem = f'it has no output {", ".join(sorted(missing))} for task {description.task!r}'
    else:
        return
    raise CheckpointError(
        f'{path} does not match {path.with_suffix(".json").name}: {problem}. Export the model '
        'again; models exported to the same folder need different names.'
    )
