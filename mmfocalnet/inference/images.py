"""Reading pictures of any kind as detectors want them: 8-bit BGR, upright, in memory bounds."""

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
from mmfocalnet.text import escape

MAX_PIXELS = 64_000_000
# What Pillow itself decodes. Its other readers call programs (EPS) or fetch further files.
FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
EXPECTED = 'expected a picture such as JPEG, PNG, TIFF, WebP, BMP or GIF'

_OPENING = threading.Lock()


class ImageError(UserError):
    """A picture that is missing, unreadable or too large."""


def read_image(
    path_or_bytes: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read a picture as a person sees it.

    It is turned upright as its EXIF says; transparency is laid on white; grey, palette, CMYK and
    1-bit pictures become colours, and the range of 16 bits is scaled to that of 8. Of a file of
    several frames or pages the first one is read. A warning is issued for images of 12 or 14 bits
    stored in 16, which become nearly black.

    Args:
        path_or_bytes: A file, or the content of one.
        max_pixels: Largest width times height; checked before anything is decoded.

    Returns:
        The picture: BGR, uint8, contiguous, (H, W, 3).

    Raises:
        ImageError: If it is missing, no regular file, no picture, damaged, or larger than
            ``max_pixels``.
    """
    if isinstance(path_or_bytes, bytes):
        return _decode(path_or_bytes, 'the picture', max_pixels)
    path = Path(path_or_bytes)
    if path.is_dir():
        raise ImageError(f'{path} is a folder; {EXPECTED}: give a file in it.')
    if fault := file_fault(path):
        raise ImageError(f'{path} {fault}; {EXPECTED}: give such a file.')
    if not path.is_file():
        raise ImageError(f'There is no file {path}; {EXPECTED}: correct its name.')
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f'{path} cannot be read ({error.strerror}); {EXPECTED}: make it readable.'
        ) from error
    return _decode(content, str(path), max_pixels)


def _decode(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    if not content:
        raise ImageError(f'{name} is empty; {EXPECTED}: fetch or save it again.')
    # Of the many kinds of error that damaged files end in, Pillow documents only some.
    try:
        image = _open(content)
    except Exception as error:
        raise ImageError(
            f'{name} is no picture, or its start is damaged; {EXPECTED}: convert it to one, or '
            'fetch it again.'
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f'{name} has {width}x{height} pixels; at most {max_pixels / 1e6:g} million fit: '
            'scale it down, or cut it into tiles.'
        )
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise ImageError(
            f'{name} is damaged or cut off ({reason}); expected a whole {image.format} file: '
            'fetch or save it again.'
        ) from error
    picture = np.ascontiguousarray(np.asarray(rgb)[..., ::-1])
    if fault := depth_warning(content, picture):
        warnings.warn(escape(f'{name} {fault}.'), stacklevel=2)
    return picture


def _open(content: bytes) -> Image.Image:
    """Read the header only, of a picture of any size: the caller has a limit of its own."""
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
    """Scale (H, W) values of 16 bits, which Pillow may hold in 32, to uint8."""
    if values.dtype.kind == 'f' or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f'{name} holds 32-bit or floating-point values, whose black and white nothing '
            'states; expected 8 or 16 bits: scale it to one of these.'
        )
    # 65535 = 255 * 257; unlike Pillow's own conversion, which clips at 255.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
