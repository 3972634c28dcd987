"""The colors of masks and boxes: one per class."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps


def find_palette(colors: Any, count: int) -> list[tuple[int, int, int]]:
    """Return one RGB color (0 to 255) per class.

    Args:
        colors: The palette of the dataset. Matplotlib's tab20 replaces one that is missing or
            malformed, or has fewer colors than classes.
        count: Number of classes.
    """
    try:
        table = np.asarray(colors, dtype=float)
    except (TypeError, ValueError, OverflowError):
        table = np.empty(0)
    is_rgb = table.ndim == 2 and table.shape[1] == 3 and len(table) >= count
    if not is_rgb or not ((table >= 0) & (table <= 255)).all():
        tab20 = (np.array(colormaps['tab20'].colors) * 255).round()
        table = tab20[np.arange(count) % len(tab20)]
    return [(int(red), int(green), int(blue)) for red, green, blue in table]
