"""Finding the pictures and videos that a command line names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmfocalnet.files import short_stem

# HEIC, which Pillow does not decode, is among them so that it is named as such.
PICTURES = (
    *('.avif', '.bmp', '.dib', '.gif', '.heic', '.heif', '.jpe', '.jpeg', '.jpg', '.jp2', '.pbm'),
    *('.pgm', '.png', '.pnm', '.ppm', '.tif', '.tiff', '.webp'),
)
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')


class Source(NamedTuple):
    """A picture or video.

    Attributes:
        path: The file.
        name: What its outputs are called, without suffix; no other source has the same.
        is_video: Whether it is a video.
    """

    path: Path
    name: str
    is_video: bool


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Find what files, folders and globs stand for.

    Of a folder all pictures and videos are taken, not those in its subfolders. A file that is
    named itself is taken whatever its suffix. Nothing is taken twice.

    Args:
        inputs: Files, folders and globs (``**`` for any subfolders).

    Returns:
        The sources in order, and one sentence for each input that stands for nothing.
    """
    files: dict[str, Path] = {}
    problems = []
    for text in inputs:
        try:
            found = list(_expand(text))
        except OSError as error:
            problems.append(
                f'{text} cannot be read ({error.strerror}): make the folder readable or leave it '
                'out.'
            )
            continue
        for path in found:
            if os.path.exists(path):
                files.setdefault(os.path.realpath(path), path)
            else:
                problems.append(
                    f'{path} is a link that leads to no file, or in a loop: correct the link.'
                )
        if not found:
            problems.append(_nothing(text))
    sources: list[Source] = []
    taken: set[str] = set()
    for path in files.values():
        name = _free_name(short_stem(path), taken)
        taken.add(name.lower())
        sources.append(Source(path, name, path.suffix.lower() in VIDEOS))
    return sources, problems


def _expand(text: str) -> Iterator[Path]:
    path = Path(text)
    # The functions of os.path return False for a name that is too long.
    if os.path.isdir(path):
        yield from (
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in PICTURES + VIDEOS and not file.is_dir()
        )
    elif os.path.lexists(path):  # first, since a name may hold the brackets of a glob
        yield path
    else:
        matches = map(Path, sorted(_match(text)))
        yield from (match for match in matches if not match.is_dir())


def _match(pattern: str) -> Iterator[str]:
    """Paths that a glob matches. ``**`` enters each folder once, even if links form a loop."""
    parts = pattern.split('/')
    if '**' not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index('**')
    rest = '/'.join(parts[place + 1 :]) or '*'
    for top in glob.iglob('/'.join([*parts[:place], ''])) if place else ['.']:
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
        inner[:] = [name for name in inner if name[0] != '.']  # globs leave out hidden ones
        yield folder


def _nothing(text: str) -> str:
    if os.path.isdir(text):
        return (
            f'The folder {text} holds no pictures or videos; expected files such as .jpg, .png or '
            f".mp4: for those in its subfolders give '{text.rstrip('/')}/**/*.jpg' in quotes."
        )
    if glob.has_magic(text):
        return f'No file matches {text!r}; expected pictures or videos: correct the pattern.'
    return f'There is no file {text}; expected a picture, video or folder: correct its name.'


def _free_name(stem: str, taken: set[str]) -> str:
    # Compared in lower case: some file systems do not tell A from a.
    name, number = stem, 2
    while name.lower() in taken:
        name, number = f'{stem}_{number}', number + 1
    return name
