"""Images and label maps decoded as training decodes them, and what is wrong with their files.

A fault is text that follows the path of the file, such as ``'is missing'``.
"""

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
"""8-bit value: a darker image may be a 12-bit or 14-bit image stored in 16 bits."""

MISSING = 'is missing'
FLOATING = 'has floating-point values, expected integers'


class ImageInfo(NamedTuple):
    """Properties of an image file.

    Attributes:
        size: Height and width after its EXIF rotation; None if it cannot be decoded.
        fault: What is wrong with it, or None.
        warning: As `depth_warning` returns it, or None.
    """

    size: tuple[int, int] | None
    fault: str | None = None
    warning: str | None = None


def inspect_image(path: str | os.PathLike) -> ImageInfo:
    """Decode an image as mmcv does and return its properties."""
    content = _read(path)
    image = _decode(content)
    if isinstance(image, str):
        return ImageInfo(None, image)
    return ImageInfo(image.shape[:2], None, depth_warning(content, image))


def decode_image(path: str | os.PathLike) -> np.ndarray | str:
    """Decode an image as mmcv does: (H, W, 3) uint8 in BGR, rotated by EXIF; or the fault."""
    return _decode(_read(path))


def decode_label_map(path: str | os.PathLike) -> np.ndarray | str:
    """Decode a label map as mmseg does: (H, W), or (H, W, C) of several channels; or the fault."""
    content = _read(path)
    if isinstance(content, str):
        return content
    try:
        with Image.open(io.BytesIO(content)) as image:
            labels = np.array(image)
    except Exception as error:  # Pillow's decoders raise any type
        return f'is damaged or not an image ({" ".join(str(error).split())})'
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def image_fault(path: str | os.PathLike) -> str | None:
    """What is wrong with an image file; None if both OpenCV and Pillow can decode it."""
    for decode in (decode_image, decode_label_map):
        image = decode(path)
        if isinstance(image, str):
            return image
    return None


def file_fault(path: str | os.PathLike) -> str | None:
    """Check, without opening it, that a file can be opened safely.

    Opening a FIFO blocks forever; devices and files of many GB fill the memory.

    Returns:
        The fault; None for a regular file of at most `MAX_BYTES`, and for a missing or
        inaccessible one.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: the path has a null byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return 'is not a regular file'
    if status.st_size > MAX_BYTES:
        return f'has {status.st_size} bytes, expected at most {MAX_BYTES}'
    return None


def shape_fault(labels: tuple[int, ...], image: tuple[int, int] | None) -> str | None:
    """Compare the shape of a label map with the height and width of its image, if known."""
    if len(labels) > 2:
        return f'has {labels[2]} channels, expected one'
    if len(labels) < 2 or 1 in labels:
        return 'is 1 pixel wide or high, expected at least 2 (mmseg drops dimensions of size 1)'
    if image is not None and labels != tuple(image):
        return f'is {labels[1]}x{labels[0]}, its image {image[1]}x{image[0]}'
    return None


def value_fault(path: str | os.PathLike) -> str | None:
    """Check that the values of a label map, which mmseg has loaded, are integers from 0 to 255."""
    try:
        with Image.open(path) as image:
            if not image.mode.startswith(('I', 'F')):  # of 8 bits
                return None
    except Exception:  # of a format that another decoder than Pillow's has read
        return None
    labels = decode_label_map(path)
    if isinstance(labels, str):
        return labels
    if labels.dtype.kind == 'f':
        return FLOATING
    wrong = labels[(labels < 0) | (labels > 255)]
    return f'has the value {wrong.flat[0]}, expected 0 to 255' if wrong.size else None


def depth_warning(content: bytes, image: np.ndarray) -> str | None:
    """Detect an image of more than 8 bits that becomes nearly black when reduced to 8.

    Args:
        content: Content of the file.
        image: The decoded image, (H, W, 3) uint8.
    """
    maximum = image.max()
    if maximum >= DARK:
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    deep = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if deep is None or deep.dtype == np.uint8:
        return None
    return (
        f'has {deep.dtype} values of at most {deep.max():g}, which become at most {maximum} of '
        f'255 in 8 bits: scale the values to the full range of {deep.dtype}'
    )


def _decode(content: bytes | str) -> np.ndarray | str:
    if isinstance(content, str):
        return content
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # it exceeds OpenCV's maximum number of pixels
        return f'cannot be decoded by OpenCV ({error.err})'
    return 'is damaged or not an image' if image is None else image


def _read(path: str | os.PathLike) -> bytes | str:
    try:
        return file_fault(path) or Path(path).read_bytes() or 'is empty'
    except FileNotFoundError:
        return MISSING
    except (OSError, ValueError) as error:
        return f'cannot be opened ({error})'
