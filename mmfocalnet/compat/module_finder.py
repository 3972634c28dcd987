"""Finders that provide missing modules and change existing ones."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ModulePatch(importlib.abc.MetaPathFinder):
    """Changes an installed module when it is imported, without importing it."""

    name: str
    change: Callable[[Any], None]

    def install(self) -> None:
        """Change the module now if it is imported, and at later imports. Can be repeated."""
        if self.name in sys.modules:
            self.change(sys.modules[self.name])
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's spec with an extended loader, None for any other module."""
        if fullname != self.name:
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None:
            return None
        exec_module = spec.loader.exec_module

        def exec_and_change(module: ModuleType) -> None:
            exec_module(module)
            self.change(module)

        spec.loader.exec_module = exec_and_change
        return spec


@dataclass(frozen=True)
class ImportTrigger(importlib.abc.MetaPathFinder):
    """Calls a function before one of some modules is imported, which it must not import itself."""

    names: tuple[str, ...]
    function: Callable[[], Any]

    def install(self) -> None:
        """Call the function before later imports. Can be repeated."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> None:
        """Call the function if this is one of the modules. Other finders find it."""
        if fullname in self.names:
            self.function()
