"""A finder and loader for the replacements of missing modules."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from types import ModuleType
from typing import Any


class ModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides modules that are not installed, so that `find_spec` and `reload` work on them too.

    A subclass lists them in ``names`` and fills a module in ``exec_module``.
    """

    names: tuple[str, ...]

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for one of ``names``, None for any other module."""
        if fullname not in self.names:
            return None
        return importlib.machinery.ModuleSpec(
            fullname,
            self,
            origin=type(self).__module__,
            is_package=any(name.startswith(f'{fullname}.') for name in self.names),
        )
