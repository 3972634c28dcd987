"""Find a checkpoint: a file, a folder of transformers, a URL or a Hugging Face id."""

from __future__ import annotations

import difflib
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

from mmfocalnet.checkpoints.safe_load import check_regular, load_file
from mmfocalnet.errors import CheckpointError
from mmfocalnet.files import PARTIAL, replacing
from mmfocalnet.released import RELEASED
from mmfocalnet.text import short_text

SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
FOLDER_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
"""File names of the weights in a folder of transformers or timm."""
FOLDER_CONFIG = 'config.json'
"""File name of the settings in such a folder."""

MAX_GIGABYTES = 10.0
"""Default size limit of a download; ``URL#max_gb=20`` sets another one."""
TIMEOUT = 30.0
"""Seconds to connect, and over which the minimum rate is measured."""
MIN_RATE = 1000
"""Bytes per second below which a download is aborted."""

_CHUNK = 2**20
_INTERVAL = 0.2  # seconds between two checks of the rate
_EXPECTED = (
    'Specify the path of a .pth or .safetensors file, an http(s) URL, a Hugging Face id or the '
    'name of a released model.'
)


def fetch(source: str | os.PathLike) -> Path:
    """Find a checkpoint on disk; download it if it is a URL or a Hugging Face id.

    Downloads are cached. Files from URLs are stored in torch.hub's checkpoint folder, under the
    file name and a digest of the URL; a lock prevents several processes of a machine from
    downloading the same file. Files from the Hugging Face hub are stored in the cache of its
    client.

    Args:
        source: Path of a file or of a folder of transformers, http(s) URL, Hugging Face id such as
            ``'microsoft/focalnet-tiny'`` (``'hf://microsoft/focalnet-tiny'``), or name of a
            released model (`mmfocalnet.released`). A URL may end in ``#sha256=HEX``, the expected
            checksum, and ``#max_gb=NUMBER``, its size limit in gigabytes (`MAX_GIGABYTES` by
            default), joined by ``&``.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: If there is no such file, or it cannot be downloaded.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(f'Invalid checkpoint {short_text(repr(source))}. {_EXPECTED}')
    text = os.fspath(source)
    if text.startswith(('http://', 'https://')):
        return _from_url(text)
    try:
        path = Path(text).expanduser()
        is_file, is_dir = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown user
        raise _invalid(text, error) from error
    if is_file:
        return path
    if is_dir:
        return _in_folder(path)
    check_regular(path, text)
    if text in RELEASED:
        return _from_url(RELEASED[text].url)
    if _is_hub_id(text):
        return _from_hub(text)
    similar = difflib.get_close_matches(text, RELEASED, n=1, cutoff=0.8)
    hint = f'Did you mean {similar[0]!r}? ' if similar else ''
    raise CheckpointError(
        f'There is no checkpoint file {short_text(repr(text))}. {hint}{_EXPECTED}'
    )


class _Requirements(NamedTuple):
    """Fragment of a URL (after ``#``)."""

    sha256: str | None
    max_bytes: float


def _from_url(text: str) -> Path:
    url, fragment = urldefrag(text)
    required = _parse_fragment(text, fragment)
    try:
        name = Path(urlparse(url).path).name or 'checkpoint.pth'
    except ValueError as error:
        raise _invalid(text, error) from error
    # Many projects use the same file names ("pytorch_model.bin").
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{digest}-{name[-200:]}')
    if not path.is_file():
        _download(url, path, required)
    elif required.sha256 and _sha256(path) != required.sha256:
        raise CheckpointError(
            f'{path}, cached from {url}, does not have the sha256 {required.sha256}. Delete it to '
            'download it again, or correct the URL.'
        )
    return path


def _parse_fragment(text: str, fragment: str) -> _Requirements:
    given = {key: values[-1] for key, values in parse_qs(fragment, keep_blank_values=True).items()}
    sha256 = given.pop('sha256', None)
    try:
        gigabytes = float(given.pop('max_gb', MAX_GIGABYTES))
        valid = sha256 is None or re.fullmatch('[0-9a-fA-F]{64}', sha256)
        if given or not gigabytes > 0 or not valid:
            raise ValueError
    except ValueError as error:
        raise CheckpointError(
            f'{short_text(text)} has {short_text(repr(fragment))} after its #. Expected sha256= '
            'and 64 hexadecimal digits, max_gb= and a number, or both, joined by &.'
        ) from error
    return _Requirements(sha256 and sha256.lower(), gigabytes * 1e9)


def _download(url: str, path: Path, required: _Requirements) -> None:
    """Download a file, unless another process of this machine has just done so."""
    if url.startswith('http://') and not required.sha256:
        print_log(
            f'{short_text(url)} is not encrypted, so the file can be modified in transit. Use '
            'https, or add #sha256=... to the URL.',
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
                    _run_transfer(_Transfer(url, part, required.max_bytes), path.name)
                    _check_download(url, part, required.sha256)
    except CheckpointError:
        raise
    except Exception as error:  # urllib raises a dozen unrelated types
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f'Could not download {short_text(url)} ({short_text(reason.rstrip("."))}). Check the '
            f'network and the URL, or download the file elsewhere and save it as {path}.'
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


def _check_download(url: str, part: Path, sha256: str | None) -> None:
    if sha256 and _sha256(part) != sha256:
        raise CheckpointError(
            f'The file downloaded from {short_text(url)} does not have the sha256 {sha256}: it was '
            'changed or damaged, or the URL or the sha256 is wrong.'
        )
    load_file(part, name=f'The file downloaded from {short_text(url)}')


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https, and from http to http."""

    def redirect_request(self, request: Any, *args: Any) -> Any:
        url = args[-1]
        if urlparse(url).scheme not in {'https', request.type}:
            raise ValueError(f'the redirect to {url} is not https')
        return super().redirect_request(request, *args)


class _Transfer(threading.Thread):
    """Copy a URL into a file, in a thread because reading headers has no timeout.

    Attributes:
        total: Announced size in bytes; None before the response or if there is none.
        received: Number of bytes so far.
        error: Exception that stopped it.
        cancelled: Set to stop it at the next chunk.
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
            urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response,
            self.path.open('wb') as file,
        ):
            self.total = response.length
            self._check_size(self.total or 0)
            while not self.cancelled and (chunk := response.read1(_CHUNK)):
                self.received += len(chunk)
                self._check_size(self.received)
                file.write(chunk)
        if self.total is not None and self.received < self.total:
            raise ValueError(f'truncated: received {self.received} of {self.total} bytes')

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            raise ValueError(
                f'larger than the limit of {self.max_bytes / 1e9:g} GB: to allow it, add '
                '#max_gb=NUMBER to the URL'
            )


def _run_transfer(transfer: _Transfer, name: str) -> None:
    """Run a transfer with a progress bar on stderr, and abort it if it stalls."""
    console = Console(stderr=True)
    columns = (TextColumn('{task.description}'), BarColumn(), DownloadColumn())
    samples: deque[int] = deque(maxlen=max(2, round(TIMEOUT / _INTERVAL)))
    transfer.start()
    try:
        with Progress(
            *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task(name, total=None)
            while transfer.is_alive():
                transfer.join(_INTERVAL)
                progress.update(task, total=transfer.total, completed=transfer.received)
                samples.append(transfer.received)
                received = samples[-1] - samples[0]
                full = len(samples) == samples.maxlen
                if full and received < MIN_RATE * TIMEOUT and transfer.is_alive():
                    raise TimeoutError(f'only {received} bytes in {TIMEOUT:g} seconds')
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


def _invalid(text: str, error: Exception) -> CheckpointError:
    reason = getattr(error, 'strerror', None) or error
    return CheckpointError(f'Invalid checkpoint {short_text(repr(text))} ({reason}). {_EXPECTED}')


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f'The folder {folder} has no {" or ".join(FOLDER_WEIGHTS)}. Specify the path of the '
        'checkpoint file in it.'
    )


def _is_hub_id(text: str) -> bool:
    if text.startswith('hf://'):
        return True
    return bool(re.fullmatch(r'[\w.-]+/[\w.-]+', text)) and not text.endswith(SUFFIXES)


def _from_hub(source: str) -> Path:
    """Get weights, and the settings beside them, from the Hugging Face hub or its cache."""
    quoted = short_text(repr(source))
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f'There is no checkpoint file {quoted}, and Hugging Face ids need the package '
            "huggingface_hub: pip install 'mmfocalnet[hf]'."
        ) from error
    get = partial(huggingface_hub.hf_hub_download, source.removeprefix('hf://'))
    try:
        path = _first_of(FOLDER_WEIGHTS, partial(get, local_files_only=True))
        if path is None:
            # Download the settings first, so that cached weights always have a config.json.
            _first_of((FOLDER_CONFIG,), get)
            path = _first_of(FOLDER_WEIGHTS, get)
    except Exception as error:  # its own errors, those of HTTP and ValueError
        reason = short_text(' '.join(str(error).split()))
        raise CheckpointError(
            f'There is no checkpoint file {quoted}, and it could not be downloaded from the '
            f'Hugging Face hub ({type(error).__name__}: {reason}). Check the network and the id.'
        ) from error
    if path is None:
        raise CheckpointError(
            f'{quoted} on the Hugging Face hub has no {" or ".join(FOLDER_WEIGHTS)}. Download its '
            'checkpoint file and specify the path.'
        )
    return path


def _first_of(names: tuple[str, ...], get: partial[str]) -> Path | None:
    """The first of several files that exists in a repository or its cache."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            return Path(get(name))
        except EntryNotFoundError as error:
            offline = isinstance(error, LocalEntryNotFoundError)
            if offline and 'local_files_only' not in get.keywords:
                raise  # the client has waited for the network; do not wait again for the next name
    return None
