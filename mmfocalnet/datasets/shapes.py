"""The generated sample set: overlapping shapes on textured ground.

Small enough to draw in seconds, and labelled in the layouts of COCO (boxes, instance masks,
panoptic maps) and ADE20K (semantic maps), so that every task of this package can be trained
and tested where the real sets are not at hand. Every label is read off one panoptic map per
image, hence the four kinds of labels agree pixel for pixel.
"""

from __future__ import annotations

import colorsys
import json
import math
import operator
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmfocalnet.errors import UserError

THINGS = ('circle', 'square', 'triangle', 'star')
STUFF = ('stripes', 'dots', 'noise')
CLASSES = THINGS + STUFF
"""Class names; the category id of a class in every file is its place here, counted from 1."""

_PALETTE = [
    (230, 57, 70),
    (69, 123, 230),
    (255, 190, 11),
    (42, 157, 80),
    (200, 182, 226),
    (168, 218, 220),
    (224, 204, 170),
]

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
"""What to pass as ``metainfo`` to the datasets of mmdet and mmseg, by task."""

# Raise it whenever the same parameters would give other files.
_FORMAT = 1
# The file in a set that holds its parameters.
STAMP = 'shapes.json'

# Folder names of COCO and of ADE20K.
_FOLDERS = {'train': ('train2017', 'training'), 'val': ('val2017', 'validation')}
# Image ids depend on split and index alone, and so do the segment ids made from them: adding
# images renumbers nothing, and 24 bits hold the largest.
MAX_COUNT = 100_000
_FIRST_ID = {'train': 1, 'val': MAX_COUNT + 1}
_IDS_PER_IMAGE = 16

# Below 64 pixels the smaller shapes lose their outline; above 2048 nothing is gained.
_MIN_SIDE, _MAX_SIDE = 64, 2048
_MIN_SHAPES, _MAX_SHAPES = 2, 6
# Extent of a shape in parts of the shorter side.
_MIN_EXTENT, _MAX_EXTENT = 0.2, 0.45
# With less in view, the class is often a guess: a half-hidden square may be a triangle.
_MIN_VISIBLE_PART = 0.6
# Radians that a shape may lean to either side. Turned at will, four outlines take a small
# detector several times as long to tell apart.
_MAX_LEAN = math.radians(20)
_MIN_VISIBLE_PIXELS = 48
_PLACEMENTS = 20

# An unfinished folder in which nothing was written for so long has no writer any more.
_ABANDONED_SECONDS = 600


@dataclass(frozen=True)
class Segment:
    """One labelled region of an image: the visible part of a shape, or of a background texture.

    Attributes:
        id: Its value in ``Sample.panoptic``, 1 or more, unique over the whole set.
        category_id: 1 to 4 for things, 5 to 7 for stuff (see ``CLASSES``).
        bbox: (x, y, width, height) of the visible part, in whole pixels.
        area: Number of visible pixels.
    """

    id: int
    category_id: int
    bbox: tuple[int, int, int, int]
    area: int

    @property
    def is_thing(self) -> bool:
        """Whether it is a countable object; only these have boxes and instance masks."""
        return self.category_id <= len(THINGS)


@dataclass(frozen=True)
class Sample:
    """One drawn image with its labels.

    Attributes:
        image_id: Unique over both splits.
        image: (H, W, 3) uint8, RGB.
        panoptic: (H, W) int32, the ``Segment.id`` at each pixel; no pixel is unlabelled.
        segments: Things from back to front, then stuff.
    """

    image_id: int
    image: np.ndarray
    panoptic: np.ndarray
    segments: tuple[Segment, ...]

    @property
    def semantic(self) -> np.ndarray:
        """(H, W) uint8 category ids, 1 to 7: ADE20K's labels before ``reduce_zero_label``."""
        labels = np.zeros(self.panoptic.shape, np.uint8)
        for segment in self.segments:
            labels[self.panoptic == segment.id] = segment.category_id
        return labels


@dataclass(frozen=True)
class _Shape:
    category_id: int
    # Vertices (N, 2) in pixels, x first; they may lie outside the image.
    outline: np.ndarray
    # (H, W) uint8, 255 inside, with soft edges.
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
    """Draw one image of the set.

    Args:
        index: Place within the split, from 0. The drawing depends on the arguments alone, not
            on how many images are drawn.
        split: 'train' or 'val'.
        size: Side of a square image, or (height, width), in pixels, 64 to 2048.
        seed: 0 or more.

    Returns:
        The image, with 2 to 6 shapes on one or two textures, and its labels.

    Raises:
        UserError: An argument is out of range.
    """
    if split not in _FOLDERS:
        raise UserError(f'split must be one of {", ".join(_FOLDERS)}, got {split!r}')
    index = whole_number('index', index, 0, MAX_COUNT - 1)
    extent = _height_width(size)
    seed = whole_number('seed', seed, 0, 2**63)

    rng = np.random.default_rng([seed, list(_FOLDERS).index(split), index])
    canvas, regions, textures, colours = _draw_background(rng, extent)
    shapes, layers = _place_shapes(rng, extent)
    for shape in shapes:
        canvas = _paint(rng, canvas, shape, colours)

    image_id = _FIRST_ID[split] + index
    first_id = image_id * _IDS_PER_IMAGE
    places = np.where(layers > 0, layers - 1, len(shapes) + regions).astype(np.int32)
    panoptic = first_id + places
    categories = [shape.category_id for shape in shapes] + textures
    segments = _measure(panoptic, dict(enumerate(categories, start=first_id)))
    return Sample(image_id, _photograph(rng, canvas), panoptic, segments)


def make_shapes(
    out: str | os.PathLike[str],
    num_train: int = 600,
    num_val: int = 80,
    size: int | Sequence[int] = 160,
    seed: int = 0,
) -> Path:
    """Write the sample set, unless it is there already.

    ::

        out/shapes.json                                       # the parameters
        out/coco/{train,val}2017/000000000001.jpg
        out/coco/annotations/instances_{train,val}2017.json   # masks as compressed RLE
        out/coco/annotations/panoptic_{train,val}2017.json    # and the folders of PNG maps
        out/ade/{images,annotations}/{training,validation}/   # JPEG; PNG with labels 1 to 7

    The same arguments give the same bytes (with the same NumPy and OpenCV). ``out`` appears
    only when all of it is written, so an interrupted call leaves nothing to repair, and of two
    calls at the same time one wins and the other uses what the first has written.

    Args:
        out: Folder to make, missing or empty. Its parents are made too.
        num_train: Training images, 1 to 100000.
        num_val: Validation images, 1 to 100000.
        size: Side of the square images, or (height, width), in pixels, 64 to 2048.
        seed: 0 or more.

    Returns:
        The absolute path of ``out``.

    Raises:
        UserError: A number is out of range, or ``out`` holds something else, which is left
            as it is.
        OSError: The folder cannot be written.
    """
    parameters = {
        'format': _FORMAT,
        'num_train': whole_number('num_train', num_train, 1, MAX_COUNT),
        'num_val': whole_number('num_val', num_val, 1, MAX_COUNT),
        'size': list(_height_width(size)),
        'seed': whole_number('seed', seed, 0, 2**63),
    }
    return write_once(out, parameters, _write_set)


def write_once(
    out: str | os.PathLike[str], parameters: dict, write: Callable[[Path, dict], None]
) -> Path:
    """Write a generated set as a whole, unless it is there already.

    Args:
        out: Folder to make, missing or empty.
        parameters: What the files depend on; kept in ``out/shapes.json``.
        write: Gets a new folder, which it fills, and the parameters.

    Returns:
        The absolute path of ``out``.

    Raises:
        UserError: ``out`` holds something else, which is left as it is.
        OSError: The folder cannot be written.
    """
    out = Path(out).resolve()
    _discard_abandoned(out)
    if _is_made(out, parameters):
        return out

    partial = out.with_name(f'{_partial_prefix(out)}{uuid.uuid4().hex}')
    try:
        # The stamp goes in first: by it a later call tells our leftovers from a user's folder.
        partial.mkdir(parents=True)
        (partial / STAMP).write_text(json.dumps(parameters) + '\n')
        write(partial, parameters)
        try:
            # Takes the place of an empty folder, and fails on any other.
            partial.rename(out)
        except OSError:
            if not _is_made(out, parameters):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


# --- arguments and folders ------------------------------------------------------------------


def whole_number(name: str, value: int, low: int, high: int) -> int:
    """Refuse an argument that is no whole number from ``low`` to ``high`` by a UserError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f'{name} must be a whole number, got {value!r}') from None
    if not low <= number <= high:
        raise UserError(f'{name} must be from {low} to {high}, got {number}')
    return number


def _height_width(size: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2:
        raise UserError(f'size must be one side or (height, width), got {size!r}')
    height, width = (whole_number('size', side, _MIN_SIDE, _MAX_SIDE) for side in sides)
    return height, width


def _partial_prefix(out: Path) -> str:
    return f'{out.name}.partial-'


def _is_made(out: Path, parameters: dict) -> bool:
    """Whether ``out`` is this very set; False if it is free to write, ValueError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = _read_stamp(out)
    if found == parameters:
        return True
    wanted = json.dumps(parameters)
    what = 'something other than a set of shapes' if found is None else json.dumps(found)
    raise UserError(
        f'{out} holds {what} where {wanted} was asked for: '
        'remove it yourself or choose another --out'
    )


def _read_stamp(folder: Path) -> dict | None:
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _discard_abandoned(out: Path) -> None:
    """Remove what calls that were killed have left beside ``out``."""
    if not out.parent.is_dir():
        return
    for folder in out.parent.iterdir():
        ours = folder.name.startswith(_partial_prefix(out)) and _read_stamp(folder) is not None
        if ours and time.time() - _last_written(folder) > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _last_written(folder: Path) -> float:
    # Each new file touches the folder it is in, so that looking at the folders is enough.
    try:
        return max(os.stat(path).st_mtime for path, _, _ in os.walk(folder))
    except (OSError, ValueError):
        # Its writer has just renamed or removed it.
        return math.inf


# --- drawing --------------------------------------------------------------------------------


def _draw_background(
    rng: np.random.Generator, extent: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, list[int], list[np.ndarray]]:
    """One or two textures.

    Returns the canvas (H, W, 3) float32 from 0 to 255, the number of the texture (0 or 1) at
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
    """(H, W) uint8: 0 on one side of a slightly wavy line near the middle, 1 on the other."""
    across, along = _rotated_grid(rng, extent)
    side = min(extent)
    wave = rng.uniform(0.01, 0.04) * side * np.sin(along * rng.uniform(4, 9) / side)
    return (across + wave > rng.uniform(-0.2, 0.2) * side).astype(np.uint8)


def _rotated_grid(
    rng: np.random.Generator, extent: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two (H, W) float32 coordinates in pixels from the middle, turned by a random angle."""
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


# Each gives tones (H, W) from 0 to 1.
_TEXTURES = {'stripes': _stripes, 'dots': _dots, 'noise': _noise}
_FILLS = (_plain, _gradient, _stripes)


def _two_tone(rng: np.random.Generator, base: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Tones (H, W) as (H, W, 3) float32 between a darker and a lighter kin of ``base``."""
    spread = rng.uniform(0.15, 0.3)
    return base * (1 - spread + 2 * spread * tone[..., None])


def _pick_colour(
    rng: np.random.Generator,
    others: list[np.ndarray],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> np.ndarray:
    """(3,) float32 RGB from 0 to 255: of a few random colours, the one least like ``others``."""
    hsv = [(rng.random(), rng.uniform(*saturation), rng.uniform(*value)) for _ in range(8)]
    candidates = 255 * np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv], np.float32)
    if not others:
        return candidates[0]
    distances = np.linalg.norm(candidates[:, None] - np.stack(others)[None], axis=2)
    return candidates[distances.min(axis=1).argmax()]


def _unit_outline(name: str) -> np.ndarray:
    """(N, 2) vertices around the origin, scaled so that the four classes look equally big."""
    corners, radius = {
        'circle': (48, 0.5),
        'square': (4, 0.6),
        'triangle': (3, 0.66),
        'star': (10, 0.66),
    }[name]
    radii = np.full(corners, radius)
    if name == 'star':
        radii[1::2] *= 0.45
    # The first corner on top, for the square the first edge.
    top = -math.pi / 2 + (math.pi / 4 if name == 'square' else 0)
    angles = top + 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


_OUTLINES = {name: _unit_outline(name) for name in THINGS}


def _random_shape(rng: np.random.Generator, extent: tuple[int, int], category_id: int) -> _Shape:
    height, width = extent
    scale = rng.uniform(_MIN_EXTENT, _MAX_EXTENT) * min(extent)
    squeeze = (1, rng.uniform(0.9, 1))
    turn = _rotation(rng.uniform(-_MAX_LEAN, _MAX_LEAN)) * squeeze
    # Nearer to the border, triangles and squares that are cut look alike.
    margin = 0.5 * scale
    centre = rng.uniform(margin, (width - margin, height - margin))
    outline = _OUTLINES[THINGS[category_id - 1]] * scale @ turn.T + centre

    coverage = np.zeros(extent, np.uint8)
    subpixels = np.round(outline * 16).astype(np.int32)
    cv2.fillPoly(coverage, [subpixels], 255, lineType=cv2.LINE_AA, shift=4)
    return _Shape(category_id, outline.astype(np.float32), coverage)


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _place_shapes(
    rng: np.random.Generator, extent: tuple[int, int]
) -> tuple[list[_Shape], np.ndarray]:
    """Shapes from back to front, and the number of the one seen at each pixel (0: none).

    A place where a shape would hide too much of the others is drawn again rather than labelled
    less, so that whatever is painted is also labelled.
    """
    layers = np.zeros(extent, np.uint8)
    shapes: list[_Shape] = []
    count = rng.integers(_MIN_SHAPES, _MAX_SHAPES + 1)
    # The class stays fixed over the attempts: else the smaller outlines would win.
    for category_id in rng.integers(1, len(THINGS) + 1, size=count):
        for _ in range(_PLACEMENTS):
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
    """``canvas`` with ``shape`` in front; its colour joins ``colours``."""
    base = _pick_colour(rng, colours, saturation=(0.45, 1), value=(0.45, 1))
    colours.append(base)
    fill = _FILLS[rng.integers(len(_FILLS))]
    opacity = (shape.coverage / np.float32(255))[..., None]
    return canvas + opacity * (_two_tone(rng, base, fill(rng, canvas.shape[:2])) - canvas)


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas as (H, W, 3) uint8, with the slight blur and the grain of a camera."""
    soft = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.8))
    grain = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(2, 7)
    return np.clip(soft + grain + 0.5, 0, 255).astype(np.uint8)


def _measure(panoptic: np.ndarray, categories: dict[int, int]) -> tuple[Segment, ...]:
    """The segments to be seen in ``panoptic``; ``categories`` maps segment to category id."""
    segments = []
    for segment_id, category_id in categories.items():
        mask = (panoptic == segment_id).astype(np.uint8)
        area = cv2.countNonZero(mask)
        # Shapes may hide the whole of a texture.
        if area:
            segments.append(Segment(segment_id, category_id, cv2.boundingRect(mask), area))
    return tuple(segments)


# --- files ----------------------------------------------------------------------------------


def _write_set(root: Path, parameters: dict) -> None:
    for split in _FOLDERS:
        coco, ade = _FOLDERS[split]
        for folder in (
            f'coco/{coco}',
            f'coco/annotations/panoptic_{coco}',
            f'ade/images/{ade}',
            f'ade/annotations/{ade}',
        ):
            (root / folder).mkdir(parents=True)
        _write_split(root, split, parameters)


def _write_split(root: Path, split: str, parameters: dict) -> None:
    images, instances, panoptic = [], [], []
    for index in range(parameters[f'num_{split}']):
        sample = draw_image(index, split, parameters['size'], parameters['seed'])
        _write_sample(root, split, sample)
        images.append(_image_record(sample))
        instances += _instance_records(sample)
        panoptic.append(_panoptic_record(sample))

    things = [category for category in _categories() if category['isthing']]
    annotations = root / 'coco' / 'annotations'
    name = f'{_FOLDERS[split][0]}.json'
    _write_json(annotations / f'instances_{name}', images, instances, things)
    _write_json(annotations / f'panoptic_{name}', images, panoptic, _categories())


def _write_sample(root: Path, split: str, sample: Sample) -> None:
    coco, ade = _FOLDERS[split]
    stem = f'{sample.image_id:012d}'
    photograph = root / 'coco' / coco / f'{stem}.jpg'
    write_picture(photograph, sample.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    _link_or_copy(photograph, root / 'ade' / 'images' / ade / f'{stem}.jpg')

    maps = root / 'coco' / 'annotations' / f'panoptic_{coco}'
    # COCO's code: id = R + 256 G + 256^2 B.
    coded = (sample.panoptic[..., None] >> np.array([0, 8, 16])) & 255
    write_picture(maps / f'{stem}.png', coded.astype(np.uint8))
    write_picture(root / 'ade' / 'annotations' / ade / f'{stem}.png', sample.semantic)


def write_picture(path: Path, picture: np.ndarray, options: Sequence[int] = ()) -> None:
    """Write (H, W) or RGB (H, W, 3) uint8. Unlike cv2.imwrite, a failure to write raises."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(path.suffix, picture, list(options))
    path.write_bytes(encoded.tobytes())


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has hard links.
        shutil.copyfile(source, target)


def _image_record(sample: Sample) -> dict:
    height, width = sample.panoptic.shape
    file_name = f'{sample.image_id:012d}.jpg'
    return {'id': sample.image_id, 'file_name': file_name, 'height': height, 'width': width}


def _instance_records(sample: Sample) -> list[dict]:
    from pycocotools import mask as coco_mask  # comes with mmdet, and mmseg does without

    things = [segment for segment in sample.segments if segment.is_thing]
    masks = np.stack([sample.panoptic == segment.id for segment in things], axis=2)
    # RLE rather than polygons: exact, also where a shape in front cuts a mask in two.
    runs = coco_mask.encode(np.asfortranarray(masks, np.uint8))
    return [
        {
            **_segment_record(segment),
            'image_id': sample.image_id,
            'segmentation': {'size': run['size'], 'counts': run['counts'].decode()},
        }
        for segment, run in zip(things, runs, strict=True)
    ]


def _panoptic_record(sample: Sample) -> dict:
    return {
        'image_id': sample.image_id,
        'file_name': f'{sample.image_id:012d}.png',
        'segments_info': [_segment_record(segment) for segment in sample.segments],
    }


def _segment_record(segment: Segment) -> dict:
    return {
        'id': segment.id,
        'category_id': segment.category_id,
        'bbox': list(segment.bbox),
        'area': segment.area,
        'iscrowd': 0,
    }


def _categories() -> list[dict]:
    return [
        {
            'id': number,
            'name': name,
            'supercategory': 'shape' if name in THINGS else 'texture',
            'isthing': int(name in THINGS),
        }
        for number, name in enumerate(CLASSES, start=1)
    ]


def _write_json(path: Path, images: list, annotations: list, categories: list) -> None:
    content = {
        'info': {'description': 'generated shapes', 'version': str(_FORMAT)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')
