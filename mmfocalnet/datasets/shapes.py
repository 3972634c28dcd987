"""The generated sample set: overlapping shapes on textured background.

All labels of an image are derived from one panoptic map, so that boxes, instance masks, panoptic
and semantic maps agree pixel by pixel.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mmfocalnet.arguments import choice, integer
from mmfocalnet.errors import UserError

THINGS = ('circle', 'square', 'triangle', 'star')
STUFF = ('stripes', 'dots', 'noise')
CLASSES = THINGS + STUFF
"""Class names; the category id of a class in every file is its index here plus 1."""

_PALETTE = [
    (230, 57, 70), (69, 123, 230), (255, 190, 11), (42, 157, 80),
    (200, 182, 226), (168, 218, 220), (224, 204, 170),
]  # fmt: skip

METAINFO = {
    'detection': {'classes': THINGS, 'palette': _PALETTE[: len(THINGS)]},
    'panoptic': {
        'classes': CLASSES,
        'thing_classes': THINGS,
        'stuff_classes': STUFF,
        'palette': _PALETTE,
    },
    'semantic': {'classes': CLASSES, 'palette': _PALETTE},
}
"""``metainfo`` for the datasets of mmdet and mmseg, by task."""

MAX_COUNT = 100_000
"""Maximum number of images of a split."""

# Image ids depend on split and index only, and segment ids on the image id, so that adding images
# changes no ids. The largest segment id fits into 24 bits.
_FIRST_ID = {'train': 1, 'val': MAX_COUNT + 1}
_IDS_PER_IMAGE = 16

# Below 64 pixels the smaller shapes lose their outline.
_MIN_SIDE, _MAX_SIDE = 64, 2048
_MIN_SHAPES, _MAX_SHAPES = 2, 6
# Extent of a shape relative to the shorter side.
_MIN_EXTENT, _MAX_EXTENT = 0.2, 0.45
# With less in view the class is ambiguous: a half-hidden square may be a triangle.
_MIN_VISIBLE_PART = 0.6
_MIN_VISIBLE_PIXELS = 48
# Maximum rotation to either side, in radians. With unrestricted rotation, a small detector needs
# several times as long to learn four outlines.
_MAX_ROTATION = math.radians(20)
_MAX_PLACEMENTS = 20


@dataclass(frozen=True)
class Segment:
    """A labelled region of an image: the visible part of a shape or of a background texture.

    Attributes:
        id: Its value in ``Sample.panoptic``, from 1, unique over the set.
        category_id: 1 to 4 for things, 5 to 7 for stuff (see ``CLASSES``).
        bbox: (x, y, width, height) of the visible part, in pixels.
        area: Number of visible pixels.
    """

    id: int
    category_id: int
    bbox: tuple[int, int, int, int]
    area: int

    @property
    def is_thing(self) -> bool:
        """Whether it is a countable object, which has a box and an instance mask."""
        return self.category_id <= len(THINGS)


@dataclass(frozen=True)
class Sample:
    """A generated image with its labels.

    Attributes:
        image_id: Unique over both splits.
        image: (H, W, 3) uint8, RGB.
        panoptic: (H, W) int32, the ``Segment.id`` of each pixel; every pixel is labelled.
        segments: Things from back to front, then stuff.
    """

    image_id: int
    image: np.ndarray
    panoptic: np.ndarray
    segments: tuple[Segment, ...]

    @property
    def semantic(self) -> np.ndarray:
        """ADE20K's labels before ``reduce_zero_label``, (H, W) uint8, category ids 1 to 7."""
        labels = np.zeros(self.panoptic.shape, np.uint8)
        for segment in self.segments:
            labels[self.panoptic == segment.id] = segment.category_id
        return labels


@dataclass(frozen=True)
class _Shape:
    """A shape: vertices (N, 2) in pixels, x first, and coverage (H, W) uint8 with soft edges."""

    category_id: int
    outline: np.ndarray
    coverage: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.coverage >= 128

    @property
    def area(self) -> float:
        return cv2.contourArea(self.outline)


def draw_image(
    index: int, split: str = 'train', size: int | Sequence[int] = 160, seed: int = 0
) -> Sample:
    """Draw an image of the set.

    Args:
        index: Index within the split, from 0.
        split: 'train' or 'val'. Defaults to 'train'.
        size: Side of a square image, or (height, width), in pixels, 64 to 2048. Defaults to 160.
        seed: 0 or more. Defaults to 0.

    Returns:
        The image, with 2 to 6 shapes on one or two textures, and its labels.

    Raises:
        UserError: If an argument is out of range.
    """
    choice('split', split, tuple(_FIRST_ID))
    index = integer('index', index, 0, MAX_COUNT - 1)
    extent = height_width(size)
    seed = integer('seed', seed, 0, 2**63)

    rng = np.random.default_rng([seed, list(_FIRST_ID).index(split), index])
    canvas, regions, textures, colours = _draw_background(rng, extent)
    shapes, layers = _place_shapes(rng, extent)
    for shape in shapes:
        canvas = _paint(rng, canvas, shape, colours)

    image_id = _FIRST_ID[split] + index
    first_id = image_id * _IDS_PER_IMAGE
    indices = np.where(layers > 0, layers - 1, len(shapes) + regions).astype(np.int32)
    panoptic = first_id + indices
    categories = [shape.category_id for shape in shapes] + textures
    segments = _measure(panoptic, dict(enumerate(categories, start=first_id)))
    return Sample(image_id, _add_camera_noise(rng, canvas), panoptic, segments)


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of images from a side or a pair.

    Raises:
        UserError: If a side is out of range, or there are not two.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise UserError(f'size must be one side or (height, width), got {size!r}')
    height, width = (integer('size', side, _MIN_SIDE, _MAX_SIDE) for side in sides)
    return height, width


def _draw_background(
    rng: np.random.Generator, extent: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[int], list[np.ndarray]]:
    """Draw one or two textures.

    Returns the canvas (H, W, 3) float32 from 0 to 255, the index of the texture (0 or 1) at
    each pixel (H, W), the category id of each texture, and the colours used.
    """
    count = rng.integers(1, 3)
    textures = rng.permutation(len(STUFF))[:count]
    regions = _split_by_line(rng, extent) if count == 2 else np.zeros(extent, np.uint8)
    canvas = np.empty((*extent, 3), np.float32)
    colours: list[np.ndarray] = []
    for number, texture in enumerate(textures):
        base = _pick_colour(rng, colours, saturation=(0.1, 0.45), value=(0.35, 0.9))
        colours.append(base)
        where = regions == number
        tone = _TEXTURES[STUFF[texture]](rng, extent)
        canvas[where] = _two_tone(rng, base, tone)[where]
    categories = [len(THINGS) + 1 + int(texture) for texture in textures]
    return canvas, regions, categories, colours


def _split_by_line(rng: np.random.Generator, extent: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: 0 on one side of a slightly wavy line near the centre, 1 on the other."""
    across, along = _rotated_grid(rng, extent)
    side = min(extent)
    wave = rng.uniform(0.01, 0.04) * side * np.sin(along * rng.uniform(4, 9) / side)
    return (across + wave > rng.uniform(-0.2, 0.2) * side).astype(np.uint8)


def _rotated_grid(
    rng: np.random.Generator, extent: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two (H, W) float32 coordinates in pixels from the centre, rotated by a random angle."""
    height, width = extent
    y, x = np.ogrid[:height, :width]
    x = (x - width / 2).astype(np.float32)
    y = (y - height / 2).astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    cosine, sine = math.cos(angle), math.sin(angle)
    return x * cosine + y * sine, y * cosine - x * sine


def _stripes(rng: np.random.Generator, extent: tuple[int, int]) -> np.ndarray:
    across, _ = _rotated_grid(rng, extent)
    period = rng.uniform(0.05, 0.1) * min(extent)
    return np.clip(0.5 + 1.5 * np.sin(across * (2 * math.pi / period)), 0, 1)


def _dots(rng: np.random.Generator, extent: tuple[int, int]) -> np.ndarray:
    period = rng.uniform(0.06, 0.1) * min(extent)
    radius = rng.uniform(0.25, 0.35)
    x, y = (axis / period % 1 - 0.5 for axis in _rotated_grid(rng, extent))
    return np.clip(0.5 + (radius - np.hypot(x, y)) * period, 0, 1)


def _noise(rng: np.random.Generator, extent: tuple[int, int]) -> np.ndarray:
    grain = rng.standard_normal(extent, dtype=np.float32)
    soft = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.009, 0.02) * min(extent))
    return np.clip(0.5 + 0.35 * soft / soft.std(), 0, 1)


def _plain(rng: np.random.Generator, extent: tuple[int, int]) -> np.ndarray:
    return np.full(extent, 0.5, np.float32)


def _gradient(rng: np.random.Generator, extent: tuple[int, int]) -> np.ndarray:
    across, _ = _rotated_grid(rng, extent)
    return np.clip(0.5 + across / min(extent), 0, 1)


# Each returns tones (H, W) from 0 to 1.
_TEXTURES = {'stripes': _stripes, 'dots': _dots, 'noise': _noise}
_FILLS = (_plain, _gradient, _stripes)


def _two_tone(rng: np.random.Generator, base: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Tones (H, W) as (H, W, 3) float32 between a darker and a lighter shade of ``base``."""
    spread = rng.uniform(0.15, 0.3)
    return base * (1 - spread + 2 * spread * tone[..., None])


def _pick_colour(
    rng: np.random.Generator,
    others: list[np.ndarray],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> np.ndarray:
    """(3,) float32 RGB from 0 to 255: of eight random colours, the most distant from ``others``."""
    hsv = [(rng.random(), rng.uniform(*saturation), rng.uniform(*value)) for _ in range(8)]
    candidates = 255 * np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv], np.float32)
    if not others:
        return candidates[0]
    distances = np.linalg.norm(candidates[:, None] - np.stack(others)[None], axis=2)
    return candidates[distances.min(axis=1).argmax()]


def _unit_outline(name: str) -> np.ndarray:
    """(N, 2) vertices around the origin, scaled so that the four classes look equally large."""
    corners = {'circle': 48, 'square': 4, 'triangle': 3, 'star': 10}[name]
    radii = np.full(corners, {'circle': 0.5, 'square': 0.6}.get(name, 0.66))
    if name == 'star':
        radii[1::2] *= 0.45
    # The first corner, or the first edge of a square, is at the top.
    top = -math.pi / 2 + (math.pi / 4 if name == 'square' else 0)
    angles = top + 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


_OUTLINES = {name: _unit_outline(name) for name in THINGS}


def _random_shape(rng: np.random.Generator, extent: tuple[int, int], category_id: int) -> _Shape:
    height, width = extent
    scale = rng.uniform(_MIN_EXTENT, _MAX_EXTENT) * min(extent)
    squeeze = (1, rng.uniform(0.9, 1))
    angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]]) * squeeze
    # Closer to the border, cropped triangles and squares look alike.
    margin = 0.5 * scale
    centre = rng.uniform(margin, (width - margin, height - margin))
    outline = _OUTLINES[THINGS[category_id - 1]] * scale @ turn.T + centre

    coverage = np.zeros(extent, np.uint8)
    subpixels = np.round(outline * 16).astype(np.int32)
    cv2.fillPoly(coverage, [subpixels], 255, lineType=cv2.LINE_AA, shift=4)
    return _Shape(category_id, outline.astype(np.float32), coverage)


def _place_shapes(
    rng: np.random.Generator, extent: tuple[int, int]
) -> tuple[list[_Shape], np.ndarray]:
    """Shapes from back to front, and the number of the visible one at each pixel (0: none).

    If a shape would hide too much of the others, another position is sampled, so that every painted
    shape is also labelled.
    """
    layers = np.zeros(extent, np.uint8)
    shapes: list[_Shape] = []
    count = rng.integers(_MIN_SHAPES, _MAX_SHAPES + 1)
    # All attempts have the same class, else smaller outlines would be more frequent.
    for category_id in rng.integers(1, len(THINGS) + 1, size=count):
        for _ in range(_MAX_PLACEMENTS):
            shape = _random_shape(rng, extent, int(category_id))
            trial = np.where(shape.mask, np.uint8(len(shapes) + 1), layers)
            if _all_visible([*shapes, shape], trial):
                shapes.append(shape)
                layers = trial
                break
    return shapes, layers


def _all_visible(shapes: list[_Shape], layers: np.ndarray) -> bool:
    visible = np.bincount(layers.ravel(), minlength=len(shapes) + 1)[1:]
    needed = [max(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_PART * shape.area) for shape in shapes]
    return bool((visible >= needed).all())


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, shape: _Shape, colours: list[np.ndarray]
) -> np.ndarray:
    """``canvas`` with ``shape`` in front; its colour is added to ``colours``."""
    base = _pick_colour(rng, colours, saturation=(0.45, 1), value=(0.45, 1))
    colours.append(base)
    fill = _FILLS[rng.integers(len(_FILLS))]
    opacity = (shape.coverage / np.float32(255))[..., None]
    return canvas + opacity * (_two_tone(rng, base, fill(rng, canvas.shape[:2])) - canvas)


def _add_camera_noise(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas as (H, W, 3) uint8, with the slight blur and the noise of a camera."""
    soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8))
    grain = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(2, 7)
    return np.clip(soft + grain + 0.5, 0, 255).astype(np.uint8)


def _measure(panoptic: np.ndarray, categories: dict[int, int]) -> tuple[Segment, ...]:
    """The visible segments in ``panoptic``; ``categories`` maps segment to category id."""
    segments = []
    for segment_id, category_id in categories.items():
        mask = (panoptic == segment_id).astype(np.uint8)
        area = cv2.countNonZero(mask)
        if area:  # shapes may hide a texture completely
            segments.append(Segment(segment_id, category_id, cv2.boundingRect(mask), area))
    return tuple(segments)
