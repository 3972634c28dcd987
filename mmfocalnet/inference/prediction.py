"""The prediction for one image, as NumPy arrays of the image's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import mmcv
import numpy as np

from mmfocalnet.inference.draw import Canvas, draw_boxes, draw_segments


class Segment(NamedTuple):
    """One segment of a panoptic map.

    Attributes:
        id: Its value in the map, from 1.
        label: Index into the classes.
        area: Number of pixels.
        is_thing: Whether its class has instances.
    """

    id: int
    label: int
    area: int
    is_thing: bool


@dataclass
class Prediction:
    """The prediction for one image.

    Attributes:
        task: ``'boxes'``, ``'boxes and masks'``, ``'panoptic'`` or ``'semantic'``; determines
            which of the other fields are set.
        image: The image, BGR, uint8, (H, W, 3).
        classes: Names of the classes.
        palette: A color per class, RGB, 0 to 255.
        score_thr: Minimum score of the boxes in `overlay`.
        boxes: (N, 4) left, top, right, bottom in pixels, sorted by score, of any score.
        labels: (N,) indices into the classes.
        scores: (N,) from 0 to 1; None for ground truth.
        masks: (N, H, W) bool.
        panoptic: (H, W) int32, the segment id of each pixel; 0 for no segment.
        segments: The segments of the panoptic map.
        semantic: (H, W) int64, indices into the classes.
    """

    task: str
    image: np.ndarray = field(repr=False)
    classes: list[str] = field(repr=False)
    palette: list[tuple[int, int, int]] = field(repr=False)
    score_thr: float = 0.3
    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: np.ndarray | None = field(default=None, repr=False)
    panoptic: np.ndarray | None = field(default=None, repr=False)
    segments: list[Segment] | None = None
    semantic: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def overlay(self) -> np.ndarray:
        """The image with the prediction drawn on it, RGB, uint8, (H, W, 3)."""
        return draw(self, self.image, self.score_thr)

    def above(self, score_thr: float) -> Prediction:
        """Keep only boxes with a score of at least ``score_thr``.

        Panoptic and semantic maps have no scores and stay as they are.
        """
        if self.scores is None:
            return replace(self, score_thr=score_thr)
        keep = self.scores >= score_thr
        return replace(
            self,
            score_thr=score_thr,
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            scores=self.scores[keep],
            masks=None if self.masks is None else self.masks[keep],
        )

    def enlarged(self, side: int) -> Prediction:
        """Scale a small image and its prediction by an integer, so that labels hide less of it.

        Args:
            side: Maximum of the longer side after scaling. Larger images stay as they are.
        """
        factor = side // max(self.image.shape[:2])
        if factor < 2:
            return self
        height, width = (factor * length for length in self.image.shape[:2])
        changes: dict[str, Any] = dict(image=mmcv.imresize(self.image, (width, height)))
        if self.boxes is not None:
            changes['boxes'] = self.boxes * factor
        for name in ('masks', 'panoptic', 'semantic'):
            values = getattr(self, name)
            if values is not None:
                changes[name] = values.repeat(factor, axis=-2).repeat(factor, axis=-1)
        return replace(self, **changes)


def draw(prediction: Prediction, image: np.ndarray, score_thr: float = 0.3) -> np.ndarray:
    """Draw a prediction on its image.

    Args:
        prediction: The prediction; the model does not run again.
        image: The image, BGR, uint8, (H, W, 3).
        score_thr: Minimum score of boxes. Panoptic and semantic maps have no scores and are drawn
            completely. Defaults to 0.3.

    Returns:
        A new image, RGB, uint8, (H, W, 3).
    """
    canvas = Canvas(image)
    classes, palette = prediction.classes, prediction.palette
    if prediction.boxes is None:
        masks = _masks(prediction)
        draw_segments(canvas, ((classes[label], palette[label], mask) for label, mask in masks))
        return canvas.finish()
    kept = prediction.above(score_thr)
    names = [classes[label] for label in kept.labels]
    if kept.scores is not None:
        names = [f'{name} {score:.2f}' for name, score in zip(names, kept.scores, strict=True)]
    draw_boxes(canvas, kept.boxes, [palette[label] for label in kept.labels], names, kept.masks)
    return canvas.finish()


def _masks(prediction: Prediction) -> Iterator[tuple[int, np.ndarray]]:
    """Yield label and mask (H, W) of each segment or class."""
    if prediction.semantic is not None:
        labels = np.unique(prediction.semantic)
        # Ground truth has pixels without a class.
        for label in labels[labels < len(prediction.classes)]:
            yield int(label), prediction.semantic == label
        return
    # Things after stuff, so that their outlines show.
    for segment in sorted(prediction.segments, key=lambda segment: segment.is_thing):
        yield segment.label, prediction.panoptic == segment.id
