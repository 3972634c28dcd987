"""Read images of many formats as upright 8-bit BGR arrays of limited size."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmfocalnet.datasets.image_files import depth_warning, file_fault
from mmfocalnet.errors import UserError
from mmfocalnet.text import escape, short_repr

MAX_PIXELS = 64_000_000
# Formats that Pillow decodes itself. Its other readers run programs (EPS) or open other files.
FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
EXPECTED = 'expected an image such as JPEG, PNG, TIFF, WebP, BMP or GIF'

_OPENING = threading.Lock()


class ImageError(UserError):
    """An image or video is missing, unreadable or too large."""


def read_image(
    path_or_bytes: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read an image, rotated by its EXIF orientation.

    Transparent pixels are blended with white. Grayscale, palette, CMYK and 1-bit images become
    RGB, and 16-bit values are scaled to 8 bits. Only the first frame or page is read. A warning is
    issued for images of 12 or 14 bits stored in 16, which become nearly black.

    Args:
        path_or_bytes: A file, or its content.
        max_pixels: Maximum of width times height, checked before decoding.

    Returns:
        The image, BGR, uint8, contiguous, (H, W, 3).

    Raises:
        ImageError: If it is missing, not a regular file, not an image, damaged, or larger than
            ``max_pixels``.
    """
    if isinstance(path_or_bytes, bytes):
        return _decode(path_or_bytes, 'the image', max_pixels)
    path = Path(path_or_bytes)
    if fault := file_fault(path):
        raise ImageError(f'{path} {fault}, {EXPECTED}.')
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f'cannot read {path} ({error}), {EXPECTED}.') from error
    return _decode(content, str(path), max_pixels)


def check_image(image: object) -> None:
    """Check that an image in memory is as `read_image` returns it.

    Raises:
        ImageError: If it is not a uint8 array (H, W, 3), or has no pixels.
    """
    is_array = isinstance(image, np.ndarray)
    if not is_array or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
        found = f'{image.dtype} array {image.shape}' if is_array else short_repr(image)
        raise ImageError(
            f'expected an image as a BGR uint8 array (H, W, 3), got {found}. Read files with '
            'mmfocalnet.inference.read_image.'
        )


def _decode(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    if not content:
        raise ImageError(f'{name} is empty, {EXPECTED}.')
    # Pillow raises many undocumented types of errors for damaged files.
    try:
        image = _open(content)
    except Exception as error:
        raise ImageError(
            f'{name} is not an image or is damaged, {EXPECTED}. Convert it or download it again.'
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f'{name} has {width}x{height} pixels, expected at most {max_pixels / 1e6:g} million. '
            'Scale it down or cut it into tiles.'
        )
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ImageError(
            f'{name} is damaged or truncated ({reason}), expected a complete {image.format} file. '
            'Download or save it again.'
        ) from error
    pixels = np.ascontiguousarray(np.asarray(rgb)[..., ::-1])
    if fault := depth_warning(content, pixels):
        warnings.warn(escape(f'{name} {fault}.'), stacklevel=2)
    return pixels


def _open(content: bytes) -> Image.Image:
    """Read the header only. The caller limits the size, instead of Pillow."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith(('I', 'F')):
        return Image.fromarray(_to_8_bits(np.asarray(image), name)).convert('RGB')
    if image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    return image.convert('RGB')


def _to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Scale 16-bit values (H, W), which Pillow may store in 32 bits, to uint8."""
    if values.dtype.kind == 'f' or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f'{name} has 32-bit or floating-point values, whose range is unknown, expected 8 or 16 '
            'bits. Convert it.'
        )
    # 65535 = 255 * 257; unlike Pillow's own conversion, which clips at 255.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
