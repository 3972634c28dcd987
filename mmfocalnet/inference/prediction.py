"""What a model said about one picture, in numpy arrays of the picture's own size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import mmcv
import numpy as np

from mmfocalnet.inference.draw import draw


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
