"""Removing outdated checkpoints only after their replacements are on disk."""

from __future__ import annotations

import os
import re
from typing import Any

from mmengine.fileio import BaseStorageBackend


class DeferredRemoval:
    """Storage of a ``CheckpointHook`` that defers removals until `flush`.

    Args:
        storage: The storage that it wraps.
        folder: The folder of the checkpoints. Files outside it belong to other runs and are not
            removed.

    Attributes:
        names: What to remove, as paths relative to the folder.
    """

    def __init__(self, storage: BaseStorageBackend, folder: str) -> None:
        self.storage = storage
        self.folder = folder
        self.names: list[str] = []
        self.join_path, self.isfile, self.isdir = storage.join_path, storage.isfile, storage.isdir

    def remove(self, path: str) -> None:
        """Defer the removal of a file or folder."""
        name = os.path.relpath(path, self.folder)
        if name.split(os.sep)[0] != os.pardir and name not in self.names:
            self.names.append(name)

    rmtree = remove

    def add(self, names: Any, template: str) -> None:
        """Add removals that a killed run did not finish.

        Args:
            names: Names from its checkpoint, which is untrusted: only names of checkpoints count.
            template: ``filename_tmpl`` of the hook.
        """
        numbered = re.sub(r'\\\{[^}]*\\\}', r'\\d+', re.escape(template))
        best = 'best_[^/]*' + numbered.replace('/', '_')
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and re.fullmatch(f'{numbered}|{best}', name):
                self.remove(os.path.join(self.folder, name))

    def flush(self, keep: list[str | None]) -> None:
        """Remove what was deferred.

        Args:
            keep: Paths to keep, as for `pending`.
        """
        for name in self.pending(keep):
            path = self.storage.join_path(self.folder, name)
            if self.storage.isfile(path):
                self.storage.remove(path)
            elif self.storage.isdir(path):  # DeepSpeed writes a file per process
                self.storage.rmtree(path)

    def pending(self, keep: list[str | None]) -> list[str]:
        """The deferred names, without those to keep.

        Args:
            keep: Paths that were written again since they were deferred.
        """
        kept = [os.path.relpath(path, self.folder) for path in keep if path]
        return [name for name in self.names if name not in kept]
