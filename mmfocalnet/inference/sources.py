"""Find images and videos by files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmfocalnet.files import short_stem

# HEIC is listed, although Pillow does not decode it, so that it is reported.
IMAGES = (
    *('.avif', '.bmp', '.dib', '.gif', '.heic', '.heif', '.jpe', '.jpeg', '.jpg', '.jp2', '.pbm'),
    *('.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp'),
)
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


class Source(NamedTuple):
    """An image or video.

    Attributes:
        path: The file.
        name: Unique name of its outputs, without suffix.
        is_video: Whether it is a video.
    """

    path: Path
    name: str
    is_video: bool


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Expand files, folders and globs.

    A folder stands for the images and videos in it, not for those in its subfolders. A file is
    included whatever its suffix. Each file is included once.

    Args:
        inputs: Files, folders and globs (``**`` for any subfolders).

    Returns:
        The sources in order, and an error message for each input without files.
    """
    files: dict[str, Path] = {}
    problems = []
    for text in inputs:
        try:
            found = list(_expand(text))
        except OSError as error:
            problems.append(f'cannot read {text} ({error.strerror}). Fix its permissions.')
            continue
        for path in found:
            if os.path.exists(path):
                files.setdefault(os.path.realpath(path), path)
            else:
                problems.append(f'{path} is a broken link or a loop of links. Fix the link.')
        if not found:
            problems.append(_no_files_message(text))
    sources: list[Source] = []
    taken: set[str] = set()
    for path in files.values():
        name = _free_name(short_stem(path), taken)
        taken.add(name.lower())
        sources.append(Source(path, name, path.suffix.lower() in VIDEOS))
    return sources, problems


def _expand(text: str) -> Iterator[Path]:
    path = Path(text)
    # Unlike those of Path, the functions of os.path accept names that are too long.
    if os.path.isdir(path):
        yield from (
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in IMAGES + VIDEOS and not file.is_dir()
        )
    elif os.path.lexists(path):  # first, since a name may contain the brackets of a glob
        yield path
    else:
        matches = map(Path, sorted(_match(text)))
        yield from (match for match in matches if not match.is_dir())


def _match(pattern: str) -> Iterator[str]:
    """Paths that match a glob. ``**`` enters each folder once, even if links form a loop."""
    parts = pattern.split('/')
    if '**' not in parts:
        yield from glob.iglob(pattern)
        return
    position = parts.index('**')
    rest = '/'.join(parts[position + 1 :]) or '*'
    for top in glob.iglob('/'.join([*parts[:position], ''])) if position else ['.']:
        for folder in _folders(top):
            yield from _match(f'{glob.escape(folder)}/{rest}')


def _folders(top: str) -> Iterator[str]:
    entered = set()
    for folder, inner, _ in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        inner[:] = [name for name in inner if name[0] != '.']  # globs skip hidden ones
        yield folder


def _no_files_message(text: str) -> str:
    if os.path.isdir(text):
        return (
            f'the folder {text} contains no images or videos. For those in its subfolders pass '
            f"'{text.rstrip('/')}/**/*.jpg' in quotes."
        )
    if glob.has_magic(text):
        return f'no file matches {text!r}. Fix the pattern.'
    return f'no such file: {text}. Fix the path of the image, video or folder.'


def _free_name(stem: str, taken: set[str]) -> str:
    # Some file systems ignore case.
    name, number = stem, 2
    while name.lower() in taken:
        name, number = f'{stem}_{number}', number + 1
    return name
