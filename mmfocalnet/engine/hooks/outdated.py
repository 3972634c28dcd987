"""Checkpoints that are removed only when what replaces them is on the disk."""

from __future__ import annotations

import os
import re
from typing import Any

from mmengine.fileio import BaseStorageBackend


class Outdated:
    """Stands in for the storage of a ``CheckpointHook`` and notes what that removes.

    Attributes:
        names: What is to be removed, as paths from the folder of checkpoints.
    """

    def __init__(self, storage: BaseStorageBackend, folder: str) -> None:
        self.storage = storage
        self.folder = folder
        self.names: list[str] = []

    def join_path(self, *parts: str) -> str:
        """Join parts of a path, as the storage does."""
        return self.storage.join_path(*parts)

    def isfile(self, path: str) -> bool:
        """Whether a file is there, as the storage says."""
        return self.storage.isfile(path)

    def isdir(self, path: str) -> bool:
        """Whether a folder is there, as the storage says."""
        return self.storage.isdir(path)

    def remove(self, path: str) -> None:
        """Note a path of the folder; what lies outside of it is of another run and stays."""
        name = os.path.relpath(path, self.folder)
        if name.split(os.sep)[0] != os.pardir and name not in self.names:
            self.names.append(name)

    def rmtree(self, path: str) -> None:
        """Note a folder, as `remove` does a file."""
        self.remove(path)

    def take_over(self, names: Any, template: str) -> None:
        """Note what a run that was killed has left, if these are names of checkpoints.

        Args:
            names: Of its checkpoint, which may be anybody's.
            template: ``filename_tmpl`` of the hook.
        """
        numbered = re.sub(r'\\\{[^}]*\\\}', r'\\d+', re.escape(template))
        best = 'best_[^/]*' + numbered.replace('/', '_')
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and re.fullmatch(f'{numbered}|{best}', name):
                self.remove(os.path.join(self.folder, name))

    def remove_noted(self, keep: list[str | None]) -> None:
        """Remove what was noted.

        Args:
            keep: As of `left_of`.
        """
        for name in self.left_of(keep):
            path = self.storage.join_path(self.folder, name)
            if self.storage.isfile(path):
                self.storage.remove(path)
            elif self.storage.isdir(path):  # a file per process, as DeepSpeed writes
                self.storage.rmtree(path)

    def left_of(self, keep: list[str | None]) -> list[str]:
        """The names, without those of files that are to be kept.

        Args:
            keep: Paths that have been written anew since they were noted.
        """
        kept = [os.path.relpath(path, self.folder) for path in keep if path]
        return [name for name in self.names if name not in kept]
