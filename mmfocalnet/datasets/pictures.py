"""What is wrong with a picture file, by the decoders that training uses."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def read_photograph(path: str | os.PathLike) -> np.ndarray | str:
    """Decode an image as mmcv does, turned as its EXIF tag says.

    Args:
        path: The file.

    Returns:
        (H, W, 3) uint8 in BGR; or what is wrong with the file.
    """
    content = _content(path)
    if isinstance(content, str):
        return content
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # of more pixels than OpenCV takes
        return f'is no picture that OpenCV takes ({error.err})'
    return 'is damaged or no picture' if picture is None else picture


def read_label_map(path: str | os.PathLike) -> np.ndarray | str:
    """Decode a semantic label map as mmseg does.

    Args:
        path: The file.

    Returns:
        (H, W) for a map, (H, W, C) for other pictures; or what is wrong with the file.
    """
    content = _content(path)
    if isinstance(content, str):
        return content
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.array(picture)
    except Exception as error:  # Pillow's decoders raise what they like
        return f'is damaged or no picture ({" ".join(str(error).split())})'


def picture_fault(path: str | os.PathLike) -> str | None:
    """Say what is wrong with a picture file.

    Args:
        path: The file.

    Returns:
        The end of a sentence that begins with the path, such as ``'is missing'``; None if both
        OpenCV and Pillow can decode it.
    """
    for read in (read_photograph, read_label_map):
        picture = read(path)
        if isinstance(picture, str):
            return picture
    return None


def _content(path: str | os.PathLike) -> bytes | str:
    try:
        return Path(path).read_bytes() or 'is empty'
    except FileNotFoundError:
        return 'is missing'
    except (OSError, ValueError) as error:  # ValueError: of a path that no file can have
        return f'cannot be opened ({error})'
