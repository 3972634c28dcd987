"""What a model said about one picture, in numpy arrays of the picture's own size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import mmcv
import numpy as np

from mmfocalnet.inference.draw import Canvas, Color, draw_boxes, draw_map


class Segment(NamedTuple):
    """One segment of a panoptic map.

    Attributes:
        id: Its value in the map, from 1.
        label: Index into the classes.
        area: In pixels.
        is_thing: Whether its class has instances.
    """

    id: int
    label: int
    area: int
    is_thing: bool


@dataclass
class Prediction:
    """What a model said about one picture.

    Attributes:
        task: ``'boxes'``, ``'boxes and masks'``, ``'panoptic'`` or ``'semantic'``; it says which
            of the other fields are set.
        image: The picture, BGR, uint8, (H, W, 3).
        classes: Names of the classes.
        palette: A colour per class, RGB, 0 to 255.
        score_thr: What `overlay` shows: only boxes of this score or a higher one.
        boxes: (N, 4) left, top, right, bottom in pixels, best scores first, of any score.
        labels: (N,) indices into the classes.
        scores: (N,) from 0 to 1; None for boxes of the truth.
        masks: (N, H, W) bool.
        panoptic: (H, W) int32, the ids of segments; 0 is none.
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
        """The picture with the prediction drawn on it: RGB, uint8, (H, W, 3)."""
        return draw(self, self.image, self.score_thr)

    def above(self, score_thr: float) -> Prediction:
        """The same prediction with only the boxes of a score of at least ``score_thr``.

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
        """The same prediction at a multiple of its picture's size, if that is small.

        Names drawn on small pictures would hide what these show.

        Args:
            side: What the picture's longer side is to have, at most; larger pictures stay as
                they are.
        """
        factor = side // max(self.image.shape[:2])
        if factor < 2:
            return self
        height, width = (factor * length for length in self.image.shape[:2])
        changes: dict[str, Any] = dict(image=mmcv.imresize(self.image, (width, height)))
        if self.boxes is not None:
            changes['boxes'] = self.boxes * factor
        for name in ('masks', 'panoptic', 'semantic'):
            labels = getattr(self, name)
            if labels is not None:
                changes[name] = labels.repeat(factor, axis=-2).repeat(factor, axis=-1)
        return replace(self, **changes)


def draw(prediction: Prediction, image: np.ndarray, score_thr: float = 0.3) -> np.ndarray:
    """Draw a prediction on its picture.

    Args:
        prediction: What to draw; the network does not run again.
        image: The picture, BGR, uint8, (H, W, 3).
        score_thr: Boxes of lower scores are left out. Panoptic and semantic maps have none and
            are drawn whole. Defaults to 0.3.

    Returns:
        A new picture, RGB, uint8, (H, W, 3).
    """
    canvas = Canvas(image)
    if prediction.semantic is not None:
        draw_map(canvas, _named(prediction, _semantic_parts(prediction)))
    elif prediction.panoptic is not None:
        draw_map(canvas, _named(prediction, _panoptic_parts(prediction)))
    else:
        shown = prediction.above(score_thr)
        names = [shown.classes[label] for label in shown.labels]
        if shown.scores is not None:
            pairs = zip(names, shown.scores, strict=True)
            names = [f'{name} {score:.2f}' for name, score in pairs]
        colors = [shown.palette[label] for label in shown.labels]
        draw_boxes(canvas, shown.boxes, colors, names, shown.masks)
    return canvas.finish()


def _named(
    prediction: Prediction, parts: Iterator[tuple[int, np.ndarray]]
) -> Iterator[tuple[str, Color, np.ndarray]]:
    for label, mask in parts:
        yield prediction.classes[label], prediction.palette[label], mask


def _semantic_parts(prediction: Prediction) -> Iterator[tuple[int, np.ndarray]]:
    labels = np.unique(prediction.semantic)
    # The truth has pixels of no class, too.
    for label in labels[labels < len(prediction.classes)]:
        yield int(label), prediction.semantic == label


def _panoptic_parts(prediction: Prediction) -> Iterator[tuple[int, np.ndarray]]:
    # Things after stuff, so that their outlines show.
    for segment in sorted(prediction.segments, key=lambda segment: segment.is_thing):
        yield segment.label, prediction.panoptic == segment.id
