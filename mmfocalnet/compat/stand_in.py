"""What the stand-ins for missing modules share: a finder that says where their code comes from."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from types import ModuleType
from typing import Any


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are not installed, so that `find_spec` and `reload` work on them too.

    A subclass names them in ``names`` and fills one in ``exec_module``.
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
