"""Finding a checkpoint: a file, a folder of transformers, a URL or a Hugging Face id."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urldefrag, urlparse

import torch
from filelock import FileLock, Timeout
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mmfocalnet.checkpoints.safe_load import load_file, no_regular_file
from mmfocalnet.errors import CheckpointError
from mmfocalnet.files import PARTIAL, replacing
from mmfocalnet.text import shown

SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
FOLDER_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
"""Names of the weights in a folder of transformers or timm."""
FOLDER_CONFIG = 'config.json'
"""Name of the settings there."""

MAX_GIGABYTES = 10.0
"""Size limit of a download; ``URL#max_gb=20`` sets another one."""
TIMEOUT = 30.0
"""Seconds to connect, and over which the minimum rate is measured."""
MIN_RATE = 1000
"""Bytes per second below which a download is given up."""

_CHUNK = 2**20
_STEP = 0.2  # seconds between two looks at a download
_EXPECTED = 'the path of a .pth or .safetensors file, an http(s) URL or a Hugging Face id'


def fetch(source: str | os.PathLike) -> Path:
    """Find a checkpoint on disk; download it once if it is a URL or a Hugging Face id.

    Downloads from URLs go to torch.hub's checkpoint folder, under the name of the file and a
    digest of the URL. They are renamed to that when they are complete. Several processes of a
    machine download a file once. Downloads from the Hugging Face hub go to its client's cache.

    Args:
        source: Path of a file or of a folder of transformers, http(s) URL, or Hugging Face
            id such as ``'microsoft/focalnet-tiny'`` (``'hf://microsoft/focalnet-tiny'``). A URL
            may end in ``#sha256=HEX``, which the file must have, and ``#max_gb=NUMBER``, its
            size limit in gigabytes (`MAX_GIGABYTES` by default), joined by ``&``.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: If there is no such file, or it cannot be downloaded.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f'The checkpoint is {shown(repr(source))}: give {_EXPECTED}.')
    text = os.fspath(source)
    if text.startswith(('http://', 'https://')):
        return _from_url(text)
    try:
        path = Path(text).expanduser()
        is_file, is_dir = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user
        raise _unusable(text, getattr(error, 'strerror', None) or error) from error
    if is_file:
        return path
    if is_dir:
        return _in_folder(path)
    if path.exists():
        raise CheckpointError(no_regular_file(path))
    if _is_hub_id(text):
        return _from_hub(text)
    raise CheckpointError(f'There is no checkpoint file {shown(repr(text))}: give {_EXPECTED}.')


class _Demands(NamedTuple):
    """What stands behind the ``#`` of a URL."""

    sha256: str | None
    max_bytes: float


def _from_url(text: str) -> Path:
    url, fragment = urldefrag(text)
    demands = _parse_demands(text, fragment)
    try:
        name = Path(urlparse(url).path).name or 'checkpoint.pth'
    except ValueError as error:  # no address
        raise _unusable(text, error) from error
    # Different projects name their files alike ("pytorch_model.bin").
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{digest}-{name[-200:]}')
    if not path.is_file():
        _download(url, path, demands)
    elif demands.sha256 and _sha256(path) != demands.sha256:
        raise CheckpointError(
            f'{path}, downloaded from {url} before, has another sha256 than {demands.sha256}: '
            'delete it to download it again, or correct the address.'
        )
    return path


def _parse_demands(text: str, fragment: str) -> _Demands:
    given = {key: values[-1] for key, values in parse_qs(fragment, keep_blank_values=True).items()}
    sha256 = given.pop('sha256', None)
    try:
        gigabytes = float(given.pop('max_gb', MAX_GIGABYTES))
        if given or not gigabytes > 0:
            raise ValueError
        if sha256 is not None and not re.fullmatch('[0-9a-fA-F]{64}', sha256):
            raise ValueError
    except ValueError as error:
        raise CheckpointError(
            f'{shown(text)} has {shown(repr(fragment))} after its #: expected sha256= and 64 '
            'hexadecimal digits, max_gb= and a number, or both, joined by &.'
        ) from error
    return _Demands(sha256 and sha256.lower(), gigabytes * 1e9)


def _download(url: str, path: Path, demands: _Demands) -> None:
    """Download a file, unless another process of this machine has just done so."""
    if url.startswith('http://') and not demands.sha256:
        print_log(
            f'{shown(url)} is not encrypted, so others can change the file on its way: use https, '
            'or add #sha256=... to the address.',
            'current',
            logging.WARNING,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name('.mmfocalnet.lock')):
            if not path.is_file():
                for rest in path.parent.glob(f'{PARTIAL}*'):  # of a process that was killed
                    with suppress(OSError):  # of another user
                        rest.unlink()
                with replacing(path) as part:
                    _watch(_Transfer(url, part, demands.max_bytes), path.name)
                    _check(part, demands.sha256)
    except CheckpointError as error:
        raise CheckpointError(f'{shown(url)} was downloaded, but {error}') from error
    except Exception as error:  # urllib raises a dozen unrelated types
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f'Could not download {shown(url)} ({shown(reason.rstrip("."))}): check the network '
            f'and the address, or download it elsewhere and put it at {path}.'
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, mode=0o666)  # for all users of the folder
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print_log(f'Waiting for another download into {path.parent}.', 'current')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check(part: Path, sha256: str | None) -> None:
    if sha256 and _sha256(part) != sha256:
        raise CheckpointError(
            f'its sha256 is not {sha256}: it was changed or damaged on its way, or the address or '
            'the sha256 is wrong.'
        )
    try:
        load_file(part)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(part), 'the file')) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, and from http to http."""

    def redirect_request(self, request: Any, *args: Any) -> Any:
        url = args[-1]
        if urlparse(url).scheme not in {'https', request.type}:
            raise ValueError(f'it is redirected to {url}, which is not https')
        return super().redirect_request(request, *args)


class _Transfer(threading.Thread):
    """Copies a URL into a file, in a thread, because reading headers has no time limit.

    Attributes:
        total: Announced size in bytes; None before the answer or if there is none.
        received: Bytes so far.
        error: What ended it early.
        cancelled: Set to end it at the next chunk.
    """

    def __init__(self, url: str, path: Path, max_bytes: float) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.path = path
        self.max_bytes = max_bytes
        self.total: int | None = None
        self.received = 0
        self.error: Exception | None = None
        self.cancelled = False

    def run(self) -> None:
        try:
            self._copy()
        except Exception as error:
            self.error = error

    def _copy(self) -> None:
        request = urllib.request.Request(self.url, headers={'User-Agent': 'mmfocalnet'})
        with (
            urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as answer,
            self.path.open('wb') as file,
        ):
            self.total = answer.length  # None if it is not announced
            self._check_size(self.total or 0)
            while not self.cancelled and (chunk := answer.read1(_CHUNK)):
                self.received += len(chunk)
                self._check_size(self.received)
                file.write(chunk)
        if self.total is not None and self.received < self.total:
            raise ValueError(f'{self.received} of {self.total} bytes came: it is truncated')

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise ValueError(
                f'it has more than {self.max_bytes / 1e9:g} GB: add #max_gb=NUMBER to the address '
                'if it is meant to be that large'
            )


def _watch(transfer: _Transfer, name: str) -> None:
    """Run a transfer with a progress bar on stderr, and give it up if it stalls."""
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    samples: deque[int] = deque(maxlen=max(2, round(TIMEOUT / _STEP)))
    transfer.start()
    try:
        with progress:
            task = progress.add_task(name, total=None)
            while transfer.is_alive():
                transfer.join(_STEP)
                progress.update(task, total=transfer.total, completed=transfer.received)
                samples.append(transfer.received)
                rate = (samples[-1] - samples[0]) / TIMEOUT
                if len(samples) == samples.maxlen and rate < MIN_RATE and transfer.is_alive():
                    raise TimeoutError(
                        f'{samples[-1] - samples[0]} bytes came in {TIMEOUT:g} seconds'
                    )
    finally:
        transfer.cancelled = True
    if transfer.error is not None:
        raise transfer.error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unusable(text: str, reason: object) -> CheckpointError:
    return CheckpointError(
        f'The checkpoint {shown(repr(text))} cannot be looked for ({reason}): give {_EXPECTED}.'
    )


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f'{folder} is a folder without {" or ".join(FOLDER_WEIGHTS)}: give the path of the '
        'checkpoint file in it.'
    )


def _is_hub_id(text: str) -> bool:
    if text.startswith('hf://'):
        return True
    return bool(re.fullmatch(r'[\w.-]+/[\w.-]+', text)) and not text.endswith(SUFFIXES)


def _from_hub(source: str) -> Path:
    """Get weights, and the settings beside them, from the Hugging Face hub or its cache."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f'There is no checkpoint file {shown(repr(source))}, and for a Hugging Face id '
            "huggingface_hub is missing: pip install 'mmfocalnet[hf]'."
        ) from error
    get = partial(huggingface_hub.hf_hub_download, source.removeprefix('hf://'))
    try:
        path = _first_of(FOLDER_WEIGHTS, partial(get, local_files_only=True))
        if path is None:
            # First, so that weights in the cache have it beside them if there is one.
            _first_of((FOLDER_CONFIG,), get)
            path = _first_of(FOLDER_WEIGHTS, get)
    except Exception as error:  # the client raises its own, its transport's and ValueErrors
        reason = shown(' '.join(str(error).split()))
        raise CheckpointError(
            f'There is no checkpoint file {shown(repr(source))}, and it could not be downloaded '
            f'from the Hugging Face hub ({type(error).__name__}: {reason}): check the network and '
            'the id.'
        ) from error
    if path is None:
        raise CheckpointError(
            f'{shown(repr(source))} on the Hugging Face hub has no '
            f'{" or ".join(FOLDER_WEIGHTS)}: download its checkpoint file and give the path.'
        )
    return path


def _first_of(names: tuple[str, ...], get: partial[str]) -> Path | None:
    """The first of some files that a repository, or its cache, has."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            return Path(get(name))
        except EntryNotFoundError as error:
            offline = isinstance(error, LocalEntryNotFoundError)
            if offline and 'local_files_only' not in get.keywords:
                raise  # the client has tried for long; the next name would take as long
    return None
