"""Uploaded files, kept in memory."""

from __future__ import annotations

import secrets
import threading
from typing import Any

from mmfocalnet.errors import UserError

# More than the rate limit accepts per minute, so that no file is dropped too early.
MAX_UPLOADS = 32


class Uploads:
    """Uploaded files in memory. Each is read once; beyond `MAX_UPLOADS` the oldest is dropped.

    The key of each file is random, so that visitors cannot access each other's files.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, bytes]] = {}
        # The server's thread adds files, the threads of the event handlers take them.
        self._lock = threading.Lock()

    def add(self, name: str, content: bytes) -> str:
        """Store a file and return its key."""
        key = secrets.token_urlsafe()
        with self._lock:
            while len(self._files) >= MAX_UPLOADS:
                del self._files[next(iter(self._files))]
            self._files[key] = (name, content)
        return key

    def take(self, key: Any) -> tuple[str, bytes]:
        """Remove a file and return its name and content.

        Raises:
            UserError: If there is no file with this key.
        """
        with self._lock:
            file = self._files.pop(key, None) if isinstance(key, str) else None
        if file is None:
            raise UserError('The server no longer has this file. Upload it again.')
        return file
