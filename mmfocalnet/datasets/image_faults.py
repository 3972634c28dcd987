"""Image files and label maps as training decodes them, and what is wrong with them."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

MAX_BYTES = 2**32
"""Larger files are not opened."""

DARK = 64
"""Of 255: an image that does not reach it may have 12 or 14 bits stored in 16."""

FLOATING = 'holds floating-point values, expected integers'


class Seen(NamedTuple):
    """What was seen of an image file.

    Attributes:
        size: Height and width, turned as its EXIF tag says; None if it cannot be read.
        fault: What is wrong with it, such as ``'is missing'``, or None.
        warning: What `depth_warning` says of it, or None.
    """

    size: tuple[int, int] | None
    fault: str | None = None
    warning: str | None = None


def look_at_image(path: str | os.PathLike) -> Seen:
    """Decode an image as mmcv does.

    Args:
        path: The file.
    """
    content = _content(path)
    picture = _decode(content)
    if isinstance(picture, str):
        return Seen(None, picture)
    return Seen(picture.shape[:2], None, depth_warning(content, picture))


def read_photograph(path: str | os.PathLike) -> np.ndarray | str:
    """Decode an image as mmcv does, turned as its EXIF tag says.

    Args:
        path: The file.

    Returns:
        (H, W, 3) uint8 in BGR; or what is wrong with the file.
    """
    return _decode(_content(path))


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
            labels = np.array(picture)
    except Exception as error:  # Pillow's decoders raise what they like
        return f'is damaged or not an image ({" ".join(str(error).split())})'
    return labels.astype(np.uint8) if labels.dtype == bool else labels


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


def file_fault(path: str | os.PathLike) -> str | None:
    """Check, without opening it, that a file can be opened safely.

    Opening a FIFO blocks forever; devices and files of many GB fill the memory.

    Args:
        path: The file.

    Returns:
        The end of a sentence that begins with the path; None for a regular file of at most
        `MAX_BYTES`, and for one that is missing or inaccessible.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: of a path that no file can have
        return None
    if not stat.S_ISREG(status.st_mode):
        return 'is not a regular file'
    if status.st_size > MAX_BYTES:
        return f'has {status.st_size} bytes, expected at most {MAX_BYTES}'
    return None


def shape_fault(labels: tuple[int, ...], image: tuple[int, int] | None) -> str | None:
    """Compare the shape of a label map with that of its image.

    Args:
        labels: Shape of the map.
        image: Height and width of the image, None if unknown.

    Returns:
        The end of a sentence that begins with the map's path, or None.
    """
    if len(labels) > 2:
        return f'has {labels[2]} channels, expected one'
    if len(labels) < 2 or 1 in labels:
        return 'is 1 pixel wide or high, expected at least 2 (mmseg drops dimensions of size 1)'
    if image is not None and labels != tuple(image):
        return f'is {labels[1]}x{labels[0]}, its image {image[1]}x{image[0]}'
    return None


def value_fault(labels: np.ndarray) -> str | None:
    """Check that mmseg's conversion to uint8 keeps the values of a label map.

    Args:
        labels: The map as it is stored.

    Returns:
        The end of a sentence that begins with the map's path, or None.
    """
    if labels.dtype.kind == 'f':
        return FLOATING
    wrong = labels[(labels < 0) | (labels > 255)] if labels.dtype != np.uint8 else labels[:0]
    return f'holds the value {wrong.flat[0]}, expected 0 to 255' if wrong.size else None


def stored_value_fault(path: str | os.PathLike) -> str | None:
    """`value_fault` of a file, of which 8-bit maps are not decoded.

    Args:
        path: A label map that mmseg has loaded.
    """
    try:
        with Image.open(path) as picture:
            if not picture.mode.startswith(('I', 'F')):
                return None
    except Exception:  # of a format that another decoder than Pillow's has read
        return None
    labels = read_label_map(path)
    return labels if isinstance(labels, str) else value_fault(labels)


def depth_warning(content: bytes, picture: np.ndarray) -> str | None:
    """Detect an image of more than 8 bits that becomes nearly black when reduced to 8.

    Args:
        content: The content of the file.
        picture: (H, W, 3) uint8, the image as it was read.

    Returns:
        The end of a sentence that begins with the path; None for images of 8 bits, and for those
        that reach `DARK`.
    """
    brightest = picture.max()
    if brightest >= DARK:
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    deep = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if deep is None or deep.dtype == np.uint8:
        return None
    return (
        f'has {deep.dtype} values of at most {deep.max():g}, which become at most {brightest} of '
        '255 in 8 bits: scale its values to the range of its type'
    )


def _decode(content: bytes | str) -> np.ndarray | str:
    if isinstance(content, str):
        return content
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # of more pixels than OpenCV takes
        return f'cannot be decoded by OpenCV ({error.err})'
    return 'is damaged or not an image' if picture is None else picture


def _content(path: str | os.PathLike) -> bytes | str:
    try:
        return file_fault(path) or Path(path).read_bytes() or 'is empty'
    except FileNotFoundError:
        return 'is missing'
    except (OSError, ValueError) as error:
        return f'cannot be opened ({error})'
