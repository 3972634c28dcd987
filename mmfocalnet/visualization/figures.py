"""Matplotlib figures of gates, modulators, kernels and receptive fields, and sheets of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imread
from matplotlib.patches import Rectangle

from mmfocalnet.errors import UserError
from mmfocalnet.files import replacing
from mmfocalnet.visualization.modulation import ModulationMaps
from mmfocalnet.visualization.receptive_fields import ReceptiveField

PANEL_WIDTH = 2.8  # inches
MAX_KERNELS = 36  # per focal level
MIN_GRADIENT = 1e-4  # lower end of the colour scale, relative to the largest gradient


def upsample_map(values: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a stage's map bilinearly to the size of the image.

    Args:
        values: Map (h, w).
        stride: Pixels per location.
        size: Height H and width W of the image. Locations beyond it, from padding to a multiple
            of the stride, are cropped.

    Returns:
        Map (H, W).
    """
    rows, columns = values.shape
    large = mmcv.imresize(values, (columns * stride, rows * stride), backend='cv2')
    return large[: size[0], : size[1]]


def draw_gates(image: np.ndarray, maps: ModulationMaps) -> Figure:
    """Draw the gates of each focal level and of the global context (Figure 3) on one colour scale.

    Args:
        image: The resized image of `prepare_image`, RGB, uint8 (H, W, 3).
        maps: The result of `modulation_maps` for it.
    """
    titles = [
        f'Focal level {level}, {size}x{size}' for level, size in enumerate(maps.kernel_sizes, 1)
    ]
    scale = Normalize(maps.gates.min(), maps.gates.max())
    figure, axes = _panels(image, len(maps.gates) + 1)
    figure.suptitle(f'Gates, stage {maps.stage}, block {maps.block}')
    for panel, title, gate in zip(axes[1:], [*titles, 'Global context'], maps.gates, strict=True):
        drawn = _overlay(panel, image, upsample_map(gate, maps.stride, image.shape[:2]), scale)
        panel.set_title(f'{title}\n{gate.min():.2f} to {gate.max():.2f}', fontsize=10)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label='gate')
    return figure


def draw_modulator(image: np.ndarray, maps: ModulationMaps) -> Figure:
    """Draw the norm of the modulator (Figure 4); the arguments are those of `draw_gates`."""
    figure, axes = _panels(image, 2)
    figure.suptitle(f'Modulator, stage {maps.stage}, block {maps.block}')
    large = upsample_map(maps.modulator, maps.stride, image.shape[:2])
    drawn = _overlay(axes[1], image, large, Normalize())
    axes[1].set_title('L2 norm over channels', fontsize=10)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label='norm')
    return figure


def draw_kernels(kernels: Sequence[np.ndarray], title: str = 'Kernels') -> Figure:
    """Draw the depth-wise kernels with the largest norms of each focal level.

    Each kernel is divided by its largest absolute weight.

    Args:
        kernels: The result of `level_kernels`: (C, k, k) per level.
        title: Title of the figure. Defaults to ``'Kernels'``.

    Raises:
        UserError: If the block has no focal levels.
    """
    if not kernels:
        raise UserError('A block with focal_levels=0 has no kernels to draw: choose another block.')
    figure, axes = _panels(None, len(kernels))
    for level, (panel, weights) in enumerate(zip(axes, kernels, strict=True), 1):
        count, size = weights.shape[:2]
        panel.set_facecolor('black')
        drawn = panel.imshow(_tile(weights), cmap='RdBu_r', vmin=-1, vmax=1)
        panel.set_title(
            f'Focal level {level}, {size}x{size}\n{min(count, MAX_KERNELS)} of {count} channels',
            fontsize=10,
        )
    figure.suptitle(title)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="weight / kernel's largest")
    return figure


def draw_receptive_field(image: np.ndarray, field: ReceptiveField) -> Figure:
    """Draw the effective receptive field on a log colour scale, and the box of the theoretical one.

    Args:
        image: The resized image of `prepare_image`, RGB, uint8 (H, W, 3).
        field: The result of `receptive_field` for it.
    """
    height, width = image.shape[:2]
    figure, axes = _panels(image, 2)
    figure.suptitle(f'Receptive field of the centre, stage {field.stage}')
    values = np.maximum(field.values, MIN_GRADIENT)
    drawn = axes[1].imshow(values, cmap='inferno', norm=LogNorm(MIN_GRADIENT, 1))
    axes[1].set_title('Effective: relative gradient', fontsize=10)
    top, left, bottom, right = field.box
    for panel in axes:
        frame = Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top,
            fill=False, color='deepskyblue', linewidth=2,
        )  # fmt: skip
        panel.add_patch(frame)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if max(top, left) <= 0 and bottom >= height and right >= width:
        frame = 'larger than the image'
    elif min(top, left) < 0 or bottom > height or right > width:
        frame = 'blue frame, partly beyond the image'
    else:
        frame = 'blue frame'
    figure.supxlabel(
        f'The focal levels reach {field.size}x{field.size} pixels ({frame}),\n'
        'the global context the entire image.',
        fontsize=8,
    )
    figure.colorbar(drawn, ax=axes, shrink=0.8, label='gradient / largest', extend='min')
    return figure


def draw_sheet(files: Sequence[Path], out: Path, columns: int = 2) -> None:
    """Arrange image files of one size in rows, and write the sheet as PNG to `out`."""
    images = [imread(file) for file in files]
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4.5 * columns, 4.5 * rows * height / width))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02, hspace=0.02)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels:
        panel.axis('off')
    for panel, image in zip(panels, images, strict=False):
        panel.imshow(image)
    figure.savefig(out, dpi=100)


def save_figure(figure: Figure, out: str | os.PathLike) -> None:
    """Write a figure as PNG, completely or not at all; create its folder.

    Raises:
        UserError: If the file cannot be written.
    """
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            figure.savefig(part, dpi=100, format='png')
    except OSError as error:
        raise UserError(
            f'{out} cannot be written ({error.strerror}): specify a file in a writable folder.'
        ) from error


def _panels(image: np.ndarray | None, count: int) -> tuple[Figure, list[Axes]]:
    """A row of panels with room for titles and a colour bar; the first one shows the image."""
    height, width = (1, 1) if image is None else image.shape[:2]
    # The ratio is limited for very narrow images.
    panel_height = PANEL_WIDTH * min(max(height / width, 0.4), 2.0)
    figure = Figure(figsize=(count * PANEL_WIDTH + 1.0, panel_height + 0.8), layout='constrained')
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in axes:
        panel.set(xticks=[], yticks=[])
    if image is not None:
        axes[0].imshow(image)
        axes[0].set_title('Image', fontsize=10)
    return figure, axes


def _overlay(panel: Axes, image: np.ndarray, values: np.ndarray, scale: Normalize) -> AxesImage:
    panel.imshow(image.mean(axis=2), cmap='gray', vmin=0, vmax=255)
    return panel.imshow(values, cmap='turbo', norm=scale, alpha=0.65)


def _tile(weights: np.ndarray) -> np.ndarray:
    """Arrange kernels (C, k, k) in a square by descending norm, with gaps of NaN."""
    order = np.argsort(-np.linalg.norm(weights, axis=(1, 2)), kind='stable')[:MAX_KERNELS]
    side = int(np.ceil(np.sqrt(len(order))))
    size = weights.shape[1]
    tiles = np.full((side**2, size + 1, size + 1), np.nan)
    largest = np.abs(weights[order]).max(axis=(1, 2), keepdims=True)
    tiles[: len(order), :size, :size] = weights[order] / np.maximum(largest, 1e-38)
    tiles = tiles.reshape(side, side, size + 1, size + 1).swapaxes(1, 2)
    return tiles.reshape(side * (size + 1), -1)[:-1, :-1]
