"""Where an error comes from."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

STACK = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmfocalnet')
INSTALLED = {'site-packages', 'dist-packages'}


def origin_of(error: Exception) -> Exception:
    """What a hook raised; MMEngine raises a TypeError anew, without the frames of the hook."""
    while (frames := frames_of(error)) and frames[-1].f_code.co_name == 'call_hook':
        if error.__context__ is None:
            break
        error = error.__context__
    return error


def frames_of(error: Exception) -> list[FrameType]:
    """From the outermost to that in which the error was raised."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def places_of(error: Exception) -> list[tuple[str, int]]:
    """Files and lines, from the outermost to where the error was raised."""
    if is_of_worker(error):
        found = re.findall(r'File "(.+?)", line (\d+)', str(error))
        return [(file, int(line)) for file, line in found]
    return [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]


def module_of(frame: FrameType) -> str:
    """The name of the module whose code a frame runs."""
    return str(frame.f_globals.get('__name__'))


def is_of_worker(error: Exception) -> bool:
    """Whether PyTorch passed it on from a worker of a data loader."""
    return str(error).startswith('Caught ') and 'Traceback (most recent call last)' in str(error)


def message(error: Exception) -> str:
    """What an error says, without the traceback that PyTorch puts into that of a worker."""
    text = str(error)
    if not is_of_worker(error):
        return text
    start = f'{type(error).__name__}: '
    return text.rsplit(start, 1)[-1] if start in text else text.strip().splitlines()[-1]


def is_users(file: str) -> bool:
    """Whether code is neither of the stack nor of any other installed package.

    Args:
        file: As frames name it. Python's frozen modules have names such as ``<frozen os>``, and
            Cython gives paths of its sources that are nowhere.
    """
    if file.startswith('<') or file.endswith(('.pyx', '.pxd')):
        return False
    if INSTALLED & set(Path(file).parts):
        return False
    # Installed as editable, a package of the stack is where its repository is.
    modules = [getattr(sys.modules.get(name), '__file__', None) for name in STACK]
    folders = [sysconfig.get_path('stdlib'), *(Path(one).parent for one in modules if one)]
    return not any(Path(file).is_relative_to(folder) for folder in folders)
