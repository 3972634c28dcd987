"""Prediction and modulation maps of one image for the web page. Gradio is not required."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from mmfocalnet.archs import DEFAULTS
from mmfocalnet.datasets import CLASSES, draw_image
from mmfocalnet.inference import ImageError, Prediction, Predictor, draw, read_image
from mmfocalnet.visualization import (
    ModulationMaps,
    draw_gates,
    draw_modulator,
    find_focalnet,
    prepare_image,
    watch_modulation,
)

# Masks and overlays have the size of the image. More pixels would not fit on a screen.
MAX_SIDE = 2048
# Decoding takes up to 20 bytes per pixel: 0.5 GB for the largest image.
MAX_PIXELS = 25_000_000
# Smaller images are enlarged for drawing only, so that labels are readable.
DRAWN_SIDE = 640
EXAMPLES = 6


@dataclass(frozen=True, eq=False)
class Analysis:
    """Prediction and maps of one image. Drawing them does not run the model again.

    Attributes:
        prediction: The prediction.
        input_image: The image as the backbone received it, RGB, uint8 (H, W, 3).
        maps: Gates and modulator of the last block of each stage.
        milliseconds: Duration of the prediction with pre- and postprocessing.
    """

    prediction: Prediction
    input_image: np.ndarray
    maps: tuple[ModulationMaps, ...]
    milliseconds: float


def read_upload(name: str, content: bytes) -> np.ndarray:
    """Read an uploaded image.

    Args:
        name: Its file name, for error messages.
        content: The content of the file.

    Returns:
        BGR, uint8 (H, W, 3), the longer side at most `MAX_SIDE`.

    Raises:
        ImageError: If it is not an image, damaged, larger than `MAX_PIXELS`, or so narrow that its
            shorter side would scale to less than one pixel.
    """
    try:
        image = read_image(content, MAX_PIXELS)
    except ImageError as error:
        raise ImageError(f'{name}: {error}') from error
    height, width = image.shape[:2]
    longer, shorter = max(height, width), min(height, width)
    if longer <= MAX_SIDE:
        return image
    if shorter * MAX_SIDE < longer:
        raise ImageError(
            f'{name} has {width}x{height} pixels. Scaling the longer side to {MAX_SIDE} would '
            'leave less than one pixel of the shorter side. Crop the image.'
        )
    return mmcv.imrescale(image, (MAX_SIDE, MAX_SIDE))


def analyze(predictor: Predictor, image: np.ndarray) -> Analysis:
    """Predict an image, and run the backbone again to record the maps of each stage.

    Args:
        predictor: The model.
        image: BGR, uint8 (H, W, 3).

    Returns:
        The prediction and the maps.

    Raises:
        ImageError: If the test pipeline rejects the image.
    """
    start = time.perf_counter()
    [prediction] = predictor.predict([image])
    milliseconds = 1000 * (time.perf_counter() - start)
    input_image, pixels = prepare_image(image, predictor.cfg)
    net = find_focalnet(predictor.model)
    # Not during the timed run, because recording takes a slower path.
    with ExitStack() as stack, torch.inference_mode():
        stages = [
            stack.enter_context(watch_modulation(net, stage)) for stage in range(len(net.layers))
        ]
        net(pixels[None].to(next(net.parameters()).device))
    return Analysis(prediction, input_image, tuple(maps for [maps] in stages), milliseconds)


def draw_prediction(analysis: Analysis, score_thr: float) -> np.ndarray:
    """Draw the prediction with the boxes above a minimum score: RGB, uint8 (H, W, 3)."""
    prediction = analysis.prediction.above(score_thr).enlarged(DRAWN_SIDE)
    return draw(prediction, prediction.image, score_thr)


def draw_maps(analysis: Analysis, stage: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the gates (Figure 3) and the modulator (Figure 4) of a stage's last block.

    Returns:
        Two images, RGB, uint8 (H, W, 3).
    """
    maps = analysis.maps[stage]
    return _pixels(draw_gates(analysis.input_image, maps)), _pixels(
        draw_modulator(analysis.input_image, maps)
    )


def describe_prediction(analysis: Analysis, score_thr: float) -> str:
    """Count the drawn objects, segments or classes.

    Returns:
        Such as ``'3 objects: 2 star, 1 circle'``, or ``'2 classes: 75% sky, 25% cat'`` with the
        share of the pixels of a semantic map.
    """
    kept = analysis.prediction.above(score_thr)
    if kept.task == 'semantic':
        return _shares(kept.semantic, kept.classes)
    if kept.task == 'panoptic':
        labels = [segment.label for segment in kept.segments]
        return _count('segment', labels, kept.classes)
    return _count('object', kept.labels, kept.classes)


def describe_run(predictor: Predictor, analysis: Analysis) -> str:
    """Architecture, number of parameters and duration in one line of text."""
    height, width = analysis.prediction.image.shape[:2]
    device = next(predictor.model.parameters()).device
    return (
        f'{type(predictor.model).__name__} with {_architecture(predictor)} · '
        f'{sum(p.numel() for p in predictor.model.parameters()) / 1e6:.1f} M parameters · '
        f'{analysis.milliseconds:.0f} ms for {width}x{height} pixels on {device}'
    )


def example_images(classes: list[str]) -> list[np.ndarray]:
    """Validation images of the generated dataset, RGB; empty for models with other classes."""
    if not set(classes) <= set(CLASSES):
        return []
    return [draw_image(index, 'val').image for index in range(EXAMPLES)]


def _count(name: str, labels: Iterable[int], classes: list[str]) -> str:
    numbers = Counter(classes[int(label)] for label in labels)
    total = numbers.total()
    each = ', '.join(f'{number} {label}' for label, number in numbers.most_common())
    return f'{total} {name}{"" if total == 1 else "s"}' + (f': {each}' if each else '')


def _shares(semantic: np.ndarray, classes: list[str]) -> str:
    pixels = Counter(semantic.ravel().tolist()).most_common()
    each = ', '.join(f'{count / semantic.size:.0%} {classes[label]}' for label, count in pixels)
    return f'{len(pixels)} {"class" if len(pixels) == 1 else "classes"}: {each}'


def _architecture(predictor: Predictor) -> str:
    settings = predictor.cfg.model.backbone
    if settings.get('arch'):
        return f'FocalNet {settings.arch}'
    width, depths, levels = (
        settings.get(key, DEFAULTS[key]) for key in ('embed_dim', 'depths', 'focal_levels')
    )
    blocks = '-'.join(map(str, depths))
    return f'FocalNet (width {width}, depths {blocks}, focal levels {levels})'


def _pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return np.asarray(Image.open(file).convert('RGB'))
