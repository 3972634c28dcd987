"""Several pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread


def draw_sheet(pictures: Sequence[Path], out: Path, columns: int = 2) -> None:
    """Lay out pictures of one size row by row.

    Args:
        pictures: Image files.
        out: PNG file to write.
        columns: Pictures per row. Defaults to 2.
    """
    images = [imread(picture) for picture in pictures]
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4.5 * columns, 4.5 * rows * height / width))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02, hspace=0.02)
    for axes, image in zip(
        figure.subplots(rows, columns, squeeze=False).flat, images, strict=False
    ):
        axes.imshow(image)
    for axes in figure.axes:
        axes.axis('off')
    figure.savefig(out, dpi=100)
