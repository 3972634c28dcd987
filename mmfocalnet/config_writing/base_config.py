"""Finding the config that a written config inherits."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.config import read_model_config
from mmfocalnet.errors import ConfigError
from mmfocalnet.text import short_repr


def read_base(name: str) -> Config:
    """Read a config by its path, or by package and path, as in ``_base_``.

    Args:
        name: A path, or for example ``'mmdet::atss/atss_r50_fpn_1x_coco.py'``.

    Returns:
        The config, with the path of its file as ``filename``.

    Raises:
        ConfigError: If there is no such config, it cannot be read, it has no model, or it is one
            of MMEngine's pure Python configs, from which other configs cannot inherit by path.
    """
    # Packages that only the old backbone needs may be missing.
    cfg = read_model_config(_find(name) if '::' in name else name, import_modules=False)
    if cfg.filename.endswith('.py') and Config._is_lazy_import(cfg.filename):
        raise ConfigError(
            f'{name} is a pure Python config (read_base): specify one with _base_, such as those '
            "of 'mmdet::'."
        )
    with suppress(ImportError):
        import_modules_from_strings(**cfg.get('custom_imports', dict(imports=[])))
    import_datasets(cfg.get('default_scope'))
    return cfg


def base_reference(name: str, out: str) -> str:
    """The value of ``_base_`` in a config that inherits another one.

    Args:
        name: As for `read_base`.
        out: Path of the config to be written.

    Returns:
        A ``package::`` name as it is, except for the fork of mmseg, which MMEngine does not find;
        else the path from the folder of ``out``.
    """
    package, separator, _ = name.partition('::')
    path = os.path.abspath(_find(name) if separator else name)
    if separator and (package != 'mmseg' or _is_installed('mmsegmentation')):
        return name if name.endswith(Path(path).suffix) else f'{name}.py'
    if 'site-packages' in path:
        return path
    return Path(os.path.relpath(path, Path(out).absolute().parent)).as_posix()


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _find(name: str) -> str:
    package, _, path = name.partition('::')
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f'{short_repr(name)} needs the package {package}, which is not installed: install it, '
            'or specify the path of a config.'
        )
    folder = Path(spec.submodule_search_locations[0], '.mim', 'configs')
    path = path if path.endswith(('.py', '.json', '.yaml', '.yml')) else f'{path}.py'
    if not (folder / path).is_file():
        names = [file.relative_to(folder).as_posix() for file in folder.glob('*/*.py')]
        similar = difflib.get_close_matches(path, names, n=3)
        hint = f'did you mean {" or ".join(similar)}?' if similar else f'see {folder}.'
        raise ConfigError(f'There is no config {short_repr(name)}: {hint}')
    return str(folder / path)
