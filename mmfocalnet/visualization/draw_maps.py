"""Drawing what `mmfocalnet.visualization.maps` reads off a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmfocalnet.errors import UserError
from mmfocalnet.files import replacing
from mmfocalnet.visualization.maps import ModulationMaps, ReceptiveField

PANEL = 2.8  # inches
TILES = 6  # kernels per row and column
FAINTEST = 1e-4  # of the strongest gradient that is told from none


def upsample_map(values: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a stage's map bilinearly to the pixels that it was computed from.

    Args:
        values: Map (h, w).
        stride: Pixels per location.
        size: Height H and width W of the image. Locations beyond it, which come from padding
            to a multiple of the stride, are cut off.

    Returns:
        Map (H, W).
    """
    rows, columns = values.shape
    large = mmcv.imresize(values, (columns * stride, rows * stride), backend='cv2')
    return large[: size[0], : size[1]]


def draw_gates(image: np.ndarray, maps: ModulationMaps) -> Figure:
    """Draw the gates of each focal level and of the global context (Figure 3).

    Args:
        image: The image that the model saw, RGB, uint8 (H, W, 3).
        maps: What `modulation_maps` returned for it.

    Returns:
        The figure; all gates share one colour scale.
    """
    titles = [
        f'Focal level {level}, {size}x{size}' for level, size in enumerate(maps.kernel_sizes, 1)
    ]
    scale = Normalize(maps.gates.min(), maps.gates.max())
    figure, axes = _panels(image, len(maps.gates) + 1)
    figure.suptitle(f'Gates, stage {maps.stage}, block {maps.block}')
    _show_image(axes[0], image)
    for panel, title, gate in zip(axes[1:], [*titles, 'Global context'], maps.gates, strict=True):
        drawn = _overlay(panel, image, upsample_map(gate, maps.stride, image.shape[:2]), scale)
        panel.set_title(f'{title}\n{gate.min():.2f} to {gate.max():.2f}', fontsize=10)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label='gate')
    return figure


def draw_modulator(image: np.ndarray, maps: ModulationMaps) -> Figure:
    """Draw the magnitude of the modulator (Figure 4).

    Args:
        image: The image that the model saw, RGB, uint8 (H, W, 3).
        maps: What `modulation_maps` returned for it.

    Returns:
        The figure.
    """
    figure, axes = _panels(image, 2)
    figure.suptitle(f'Modulator, stage {maps.stage}, block {maps.block}')
    _show_image(axes[0], image)
    large = upsample_map(maps.modulator, maps.stride, image.shape[:2])
    drawn = _overlay(axes[1], image, large, Normalize())
    axes[1].set_title('L2 norm over channels', fontsize=10)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label='norm')
    return figure


def draw_kernels(kernels: Sequence[np.ndarray], title: str = 'Kernels') -> Figure:
    """Draw the depth-wise kernels with the largest norm of each focal level.

    Args:
        kernels: What `level_kernels` returned: (C, k, k) per level.
        title: Title of the figure. Defaults to ``'Kernels'``.

    Returns:
        The figure. Each kernel is divided by its largest absolute weight.

    Raises:
        UserError: If the block has no focal levels.
    """
    if not kernels:
        raise UserError('This block has focal_levels=0, so no kernels to draw: choose another.')
    figure, axes = _panels(np.empty((1, 1)), len(kernels))
    for level, (panel, weights) in enumerate(zip(axes, kernels, strict=True), 1):
        count, size = weights.shape[:2]
        shown = min(count, TILES**2)
        panel.set_facecolor('black')
        drawn = panel.imshow(_tiles(weights), cmap='RdBu_r', vmin=-1, vmax=1)
        panel.set_title(
            f'Focal level {level}, {size}x{size}\n{shown} of {count} channels', fontsize=10
        )
    figure.suptitle(title)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="weight / kernel's largest")
    return figure


def draw_receptive_field(image: np.ndarray, field: ReceptiveField) -> Figure:
    """Draw the effective receptive field and the box of the theoretical one.

    Args:
        image: The image that the model saw, RGB, uint8 (H, W, 3).
        field: What `receptive_field` returned for it.

    Returns:
        The figure; colours are logarithmic.
    """
    figure, axes = _panels(image, 2)
    figure.suptitle(f'Receptive field of the centre, stage {field.stage}')
    _show_image(axes[0], image)
    drawn = axes[1].imshow(
        np.maximum(field.values, FAINTEST), cmap='inferno', norm=LogNorm(FAINTEST, 1)
    )
    axes[1].set_title('Effective: relative gradient', fontsize=10)
    top, left, bottom, right = field.box
    for panel in axes:
        frame = Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top,
            fill=False, color='deepskyblue', linewidth=2,
        )  # fmt: skip
        panel.add_patch(frame)
        panel.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    figure.supxlabel(
        f'The focal levels reach {field.size}x{field.size} pixels ({_frame_seen(image, field)}),\n'
        'the global context all of the image.',
        fontsize=8,
    )
    figure.colorbar(drawn, ax=axes, shrink=0.8, label='gradient / largest', extend='min')
    return figure


def save_figure(figure: Figure, out: str | os.PathLike) -> None:
    """Write a figure as PNG, whole or not at all.

    Args:
        figure: The figure.
        out: File to write; its folder is made.

    Raises:
        UserError: If it cannot be written.
    """
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            figure.savefig(part, dpi=100, format='png')
    except OSError as error:
        raise UserError(
            f'{out} cannot be written ({error.strerror}): give a folder that can.'
        ) from error


def _panels(image: np.ndarray, count: int) -> tuple[Figure, list[Axes]]:
    """A row of panels of the image's shape, with room for titles and a colour bar."""
    height, width = image.shape[:2]
    # Neither slivers nor towers, whatever the image.
    tall = PANEL * min(max(height / width, 0.4), 2.0)
    figure = Figure(figsize=(count * PANEL + 1.0, tall + 0.8), layout='constrained')
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in axes:
        panel.set(xticks=[], yticks=[])
    return figure, axes


def _show_image(panel: Axes, image: np.ndarray) -> None:
    panel.imshow(image)
    panel.set_title('Image', fontsize=10)


def _overlay(panel: Axes, image: np.ndarray, values: np.ndarray, scale: Normalize) -> object:
    panel.imshow(image.mean(axis=2), cmap='gray', vmin=0, vmax=255)
    return panel.imshow(values, cmap='turbo', norm=scale, alpha=0.65)


def _frame_seen(image: np.ndarray, field: ReceptiveField) -> str:
    (height, width), (top, left, bottom, right) = image.shape[:2], field.box
    if max(top, left) <= 0 and bottom >= height and right >= width:
        return 'more than the image'
    if min(top, left) < 0 or bottom > height or right > width:
        return 'blue frame, partly beyond the image'
    return 'blue frame'


def _tiles(weights: np.ndarray) -> np.ndarray:
    """Lay kernels (C, k, k) out in a square, blank between them, the largest norm first."""
    order = np.argsort(-np.linalg.norm(weights, axis=(1, 2)), kind='stable')[: TILES**2]
    side = int(np.ceil(np.sqrt(len(order))))
    size = weights.shape[1] + 1
    sheet = np.full((side * size - 1, side * size - 1), np.nan)
    for place, channel in enumerate(order):
        top, left = (index * size for index in divmod(place, side))
        kernel = weights[channel]
        largest = max(np.abs(kernel).max(), np.finfo(np.float32).tiny)
        sheet[top : top + size - 1, left : left + size - 1] = kernel / largest
    return sheet
