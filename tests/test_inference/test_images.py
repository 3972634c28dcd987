"""Images of all formats and modes are read correctly or rejected with an error."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmfocalnet.datasets.image_files import MAX_BYTES
from mmfocalnet.inference import ImageError, read_image

RED = (255, 0, 0)


def encoded(image, kind='PNG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def first_pixel(image, kind='PNG', **options):
    """The first pixel of an image, RGB."""
    pixels = read_image(encoded(image, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == (*image.size[::-1], 3)
    return tuple(pixels[0, 0, ::-1].tolist())


def palette_image():
    image = Image.new('P', (4, 3), 7)
    image.putpalette([0, 0, 0] * 7 + list(RED))
    return image


@pytest.mark.parametrize(
    ('image', 'kind', 'color'),
    [
        (Image.new('RGB', (4, 3), RED), 'PNG', RED),
        (Image.new('RGB', (4, 3), RED), 'WEBP', RED),
        (Image.new('RGB', (4, 3), RED), 'GIF', RED),
        (Image.new('L', (4, 3), 77), 'PNG', (77, 77, 77)),
        (Image.new('L', (4, 3), 77), 'JPEG', (77, 77, 77)),
        (Image.new('1', (4, 3), 1), 'PNG', (255, 255, 255)),
        (Image.new('1', (4, 3), 1), 'TIFF', (255, 255, 255)),
        (palette_image(), 'PNG', RED),
        (Image.new('RGBA', (4, 3), (*RED, 255)), 'PNG', RED),
        (Image.new('RGBA', (4, 3), (0, 0, 0, 0)), 'PNG', (255, 255, 255)),
        (Image.new('RGBA', (4, 3), (*RED, 51)), 'PNG', (255, 204, 204)),
        (Image.new('LA', (4, 3), (0, 0)), 'PNG', (255, 255, 255)),
        (Image.new('CMYK', (4, 3), (0, 255, 255, 0)), 'TIFF', RED),
        (Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'JPEG', RED),
    ],
)  # fmt: skip
def test_colors_of_all_modes(image, kind, color):
    assert first_pixel(image, kind) == pytest.approx(color, abs=3)


def test_transparent_palette_color_is_white():
    assert first_pixel(palette_image(), 'PNG', transparency=7) == (255, 255, 255)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_16_bits_keep_their_range(kind):
    values = np.array([[0, 257 * 100], [65535, 300]], np.uint16)
    grey = read_image(encoded(Image.fromarray(values), kind))[..., 0]
    assert grey.tolist() == [[0, 100], [255, 1]]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(orientation):
    # How the scene is stored for each EXIF orientation.
    stored = {
        1: lambda scene: scene,
        2: np.fliplr,
        3: lambda scene: np.rot90(scene, 2),
        4: np.flipud,
        5: lambda scene: scene.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda scene: np.rot90(scene, 2).transpose(1, 0, 2),
        8: lambda scene: np.rot90(scene, -1),
    }
    scene = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation](scene)))
    assert (read_image(encoded(image, exif=exif))[..., ::-1] == scene).all()


def test_the_first_of_several_frames_is_read():
    frames = [Image.new('RGB', (4, 3), color) for color in (RED, (0, 255, 0))]
    content = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert tuple(read_image(content)[0, 0, ::-1]) == RED


def png_header(width, height):
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    return b'\x89PNG\r\n\x1a\n' + chunk + struct.pack('>I', 0) + b'IDAT' + bytes(4)


def test_size_is_checked_before_decoding():
    # The file has no pixels: decoding it would raise another error.
    with pytest.raises(ImageError, match='20000x20000'):
        read_image(png_header(20000, 20000))


def test_max_pixels():
    content = encoded(Image.new('RGB', (20, 10)))
    assert read_image(content, max_pixels=200).shape == (10, 20, 3)
    with pytest.raises(ImageError, match='20x10'):
        read_image(content, max_pixels=199)


def test_the_limit_of_pillow_is_restored():
    limit = Image.MAX_IMAGE_PIXELS
    read_image(encoded(Image.new('RGB', (2, 2))))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ('content', 'token'),
    [
        (b'', 'empty'),
        (b'text', 'not an image'),
        (b'<html><body>404</body></html>', 'not an image'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),
        (encoded(Image.effect_noise((64, 64), 90), 'JPEG')[:1500], 'truncated'),
        (encoded(Image.effect_noise((64, 64), 90))[:900], 'truncated'),
        (encoded(Image.fromarray(np.full((3, 3), 0.5, np.float32)), 'TIFF'), 'floating-point'),
    ],
)
def test_errors_of_invalid_files_name_them(tmp_path, content, token):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf'photo\.jpg .*{token}') as caught:
        read_image(path)
    assert '\n' not in str(caught.value)
    with pytest.raises(ImageError, match=token):
        read_image(content)


def test_errors_of_missing_files_and_folders_name_them(tmp_path):
    for path in (tmp_path / 'missing.png', tmp_path, 'a' * 300, 'a\0b'):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(path) in str(caught.value).replace('\\x00', '\0')


def test_photos_match_pillow(coco_root):
    photo = next(iter(sorted(coco_root.rglob('*.jpg'))))
    with Image.open(photo) as image:
        expected = np.asarray(image.convert('RGB'))
    assert (read_image(photo)[..., ::-1] == expected).all()


def twelve_bits(channels):
    shape = (8, 8, 3) if channels == 3 else (8, 8)
    values = np.linspace(0, 4095, 64 * channels).reshape(shape).astype(np.uint16)
    return cv2.imencode('.png', values)[1].tobytes()


@pytest.mark.parametrize('channels', [1, 3])
def test_12_bits_stored_in_16_issue_a_warning(tmp_path, channels):
    path = tmp_path / 'x-ray\x1b[2J.png'
    path.write_bytes(twelve_bits(channels))
    with pytest.warns(UserWarning, match='4095') as caught:
        image = read_image(path)
    assert image.shape == (8, 8, 3)
    assert image.max() in (15, 16)
    assert r'x-ray\x1b[2J.png' in str(caught[0].message)


@pytest.mark.parametrize(
    'content',
    [
        encoded(Image.new('RGB', (4, 3), (9, 9, 9))),
        encoded(Image.fromarray(np.array([[3, 20000]], np.uint16))),
    ],
    ids=['dark', '16 bits'],
)
def test_other_images_issue_no_warning(content, recwarn):
    read_image(content)
    assert not recwarn.list


@pytest.mark.parametrize('kind', ['FIFO', 'device', 'sparse'])
def test_irregular_files_are_not_opened(tmp_path, kind, monkeypatch):
    path = tmp_path / 'photo.jpg'
    if kind == 'FIFO':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/null')
    else:
        path.touch()
        os.truncate(path, MAX_BYTES + 1)
    monkeypatch.setattr(Path, 'read_bytes', None)  # opening a FIFO blocks forever
    with pytest.raises(ImageError, match=r'photo\.jpg'):
        read_image(path)
