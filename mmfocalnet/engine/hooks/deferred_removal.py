"""Removal of outdated checkpoints after the new one is on disk."""

from __future__ import annotations

import os
import re
from typing import Any

from mmengine.fileio import BaseStorageBackend


class DeferredRemovalStorage:
    """A storage for ``CheckpointHook`` that schedules removals instead of executing them.

    It has the methods of the storage that the hook calls.

    Attributes:
        names: Paths to remove, relative to the folder of checkpoints.
    """

    def __init__(self, storage: BaseStorageBackend, folder: str) -> None:
        self.storage = storage
        self.folder = folder
        self.names: list[str] = []
        self.join_path = storage.join_path
        self.isfile = storage.isfile
        self.isdir = storage.isdir

    def remove(self, path: str) -> None:
        """Schedule the removal of a path; paths outside the folder belong to another run."""
        name = os.path.relpath(path, self.folder)
        if name.split(os.sep)[0] != os.pardir and name not in self.names:
            self.names.append(name)

    rmtree = remove

    def schedule_leftovers(self, names: Any, template: str) -> None:
        """Schedule the removals that a killed run left; ignore names that are not of checkpoints.

        Args:
            names: From the untrusted checkpoint of that run.
            template: ``filename_tmpl`` of the hook.
        """
        numbered = re.sub(r'\\\{[^}]*\\\}', r'\\d+', re.escape(template))
        best = 'best_[^/]*' + numbered.replace('/', '_')
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and re.fullmatch(f'{numbered}|{best}', name):
                self.remove(os.path.join(self.folder, name))

    def remove_scheduled(self, keep: list[str | None]) -> None:
        """Remove the scheduled paths, except those of `keep`."""
        for name in self.scheduled_except(keep):
            path = self.storage.join_path(self.folder, name)
            if self.storage.isfile(path):
                self.storage.remove(path)
            elif self.storage.isdir(path):  # a file per process, as DeepSpeed writes
                self.storage.rmtree(path)

    def scheduled_except(self, keep: list[str | None]) -> list[str]:
        """The scheduled names, except the paths in `keep`."""
        kept = [os.path.relpath(path, self.folder) for path in keep if path]
        return [name for name in self.names if name not in kept]
