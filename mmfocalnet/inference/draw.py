"""Draw masks, boxes and labels; text and lines scale with the image.

mmdet's visualizer changes its colors between calls and fails on empty panoptic maps.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.5
# Segments smaller than this fraction of the image get no label.
MIN_LABELED = 0.002

Color = tuple[int, int, int]


class Canvas:
    """An RGB copy of a BGR image (H, W, 3). Labels are drawn last, so that nothing covers them."""

    def __init__(self, image: np.ndarray) -> None:
        self.rgb = image[..., ::-1].copy()
        height, width = self.rgb.shape[:2]
        self.line = max(1, round(min(height, width) / 300))
        self.font = ImageFont.load_default(max(9, min(height, width) / 32))
        self.labels: list[tuple[str, Color, list[tuple[float, float]]]] = []

    def fill(self, mask: np.ndarray, color: Color) -> None:
        """Tint the pixels of a mask (H, W) and outline it."""
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        if not width:
            return
        part = np.s_[top : top + height, left : left + width]
        pixels, inside = self.rgb[part], mask[part]
        blend = OPACITY * np.array(color) + (1 - OPACITY) * pixels[inside]
        pixels[inside] = blend.astype(np.uint8)
        outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(self.rgb, outlines, -1, (255, 255, 255), self.line)

    def box(self, box: np.ndarray, color: Color) -> None:
        """Outline a box: left, top, right, bottom in pixels."""
        left, top, right, bottom = (int(edge) for edge in box.round())
        cv2.rectangle(self.rgb, (left, top), (right, bottom), color, self.line + 1)

    def label(self, text: str, color: Color, places: list[tuple[float, float]]) -> None:
        """Add a label; ``places`` are lower left corners of its text, in order of preference."""
        self.labels.append((text, color, places))

    def finish(self) -> np.ndarray:
        """Add the labels, each where it covers none of the earlier ones; return RGB (H, W, 3)."""
        image = Image.fromarray(self.rgb)
        drawing = ImageDraw.Draw(image)
        taken: list[tuple[float, float, float, float]] = []
        for text, color, places in self.labels:
            spots = [self._spot(drawing, text, place) for place in places]
            spot = next((s for s in spots if not any(_overlap(s, t) for t in taken)), spots[0])
            taken.append(spot)
            drawing.rectangle(spot, fill=color)
            middle = ((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2)
            drawing.text(middle, text, _text_color(color), self.font, anchor='mm')
        return np.asarray(image)

    def _spot(
        self, drawing: ImageDraw.ImageDraw, text: str, place: tuple[float, float]
    ) -> tuple[float, float, float, float]:
        """Box of a label, moved inside the image: left, top, right, bottom."""
        ascent, descent = self.font.getmetrics()
        width, height = drawing.textlength(text, self.font) + 4, ascent + descent
        left = max(0, min(place[0], self.rgb.shape[1] - width))
        top = max(0, min(place[1] - height, self.rgb.shape[0] - height))
        return left, top, left + width, top + height


def _text_color(background: Color) -> str:
    """Black or white, whichever has more contrast to the background."""
    return 'black' if np.dot(background, (0.299, 0.587, 0.114)) > 140 else 'white'


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_boxes(
    canvas: Canvas,
    boxes: np.ndarray,
    colors: list[Color],
    names: list[str],
    masks: np.ndarray | None = None,
) -> None:
    """Draw boxes (N, 4) and their masks (N, H, W); the first ones on top."""
    for index in reversed(range(len(boxes))):
        if masks is not None:
            canvas.fill(masks[index], colors[index])
        canvas.box(boxes[index], colors[index])
    height = sum(canvas.font.getmetrics())
    for box, color, name in zip(boxes, colors, names, strict=True):
        left, top, _, bottom = (float(edge) for edge in box)
        canvas.label(
            name,
            color,
            [(left, top), (left, bottom + height), (left, top + height), (left, bottom)],
        )


def draw_segments(canvas: Canvas, segments: Iterable[tuple[str, Color, np.ndarray]]) -> None:
    """Draw segments: name, color and mask (H, W) of each. Small ones get no label."""
    min_area = MIN_LABELED * canvas.rgb.shape[0] * canvas.rgb.shape[1]
    height = sum(canvas.font.getmetrics())
    for name, color, mask in segments:
        canvas.fill(mask, color)
        if mask.sum() >= min_area:
            x, y = _innermost_point(mask)
            left = x - canvas.font.getlength(name) / 2
            canvas.label(name, color, [(left, y + shift * height) for shift in (0.5, -0.5, 1.5)])


def _innermost_point(mask: np.ndarray) -> tuple[int, int]:
    """The point (x, y) of a mask farthest from its outline and from the border of the image."""
    distance = cv2.distanceTransform(np.pad(mask, 1).view(np.uint8), cv2.DIST_L2, 3)
    x, y = cv2.minMaxLoc(distance)[3]
    return x - 1, y - 1
