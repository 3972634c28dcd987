"""Trying FocalNet in every family of detectors and segmentors of an installed package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from mmfocalnet.config_writing.base_config import read_base
from mmfocalnet.config_writing.swap_backbone import swap_backbone
from mmfocalnet.config_writing.trial import build_model, try_model
from mmfocalnet.errors import ConfigError
from mmfocalnet.text import short_text

NARROW = dict(embed_dim=16, depths=[1, 1, 1, 1])  # as every detector is tried
_MAX_CONFIGS = 4  # of a family


@dataclass
class Result:
    """What became of a family.

    Attributes:
        family: Name of its folder.
        config: The config that was tried.
        state: ``'works'``, ``'not exchangeable'`` if the backbone cannot be replaced, ``'stack'``
            if the model fails with its own backbone as well, else ``'fails'``.
        reason: The error; empty if it works.
    """

    family: str
    config: str
    state: str
    reason: str = ''


def find_families(package: str) -> dict[str, list[Path]]:
    """Config files of a package by folder, those with ResNet-50 and short names first."""
    spec = find_spec(package)
    root = Path(spec.submodule_search_locations[0], '.mim', 'configs')
    families = {}
    for folder in sorted(root.iterdir()):
        files = [file for file in folder.glob('*.py') if '_base_' not in file.name]
        if files and folder.name != '_base_':
            files.sort(key=lambda f: ('r50' not in f.name, 'r-50' not in f.name, len(f.name), f))
            families[folder.name] = files
    return families


def try_family(
    family: str, files: list[Path], check: Callable[[Config], None], build_only: bool = False
) -> Result:
    """Replace the backbone in a config of a family and use the model, until one config works.

    Args:
        family: Name of the family.
        files: Its configs.
        check: What is called with the changed config before the model is built.
        build_only: Do not compute losses, gradients and predictions. Defaults to False.

    Returns:
        The result of the first config that works; else of one that fails, or whose model fails
        with its own backbone as well, before those whose backbone cannot be replaced.
    """
    results = []
    for file in files[:_MAX_CONFIGS]:
        result = _try_config(family, file, check, build_only)
        if result.state == 'works':
            return result
        results.append(result)
    return min(results, key=lambda r: ('fails', 'stack', 'not exchangeable').index(r.state))


def _try_config(
    family: str, file: Path, check: Callable[[Config], None], build_only: bool
) -> Result:
    def use(cfg: Config) -> None:
        model = build_model(cfg)
        if not build_only:
            try_model(cfg, model)

    state = 'not exchangeable'
    try:
        original = read_base(str(file))
        cfg = swap_backbone(original, **NARROW).cfg
        state = 'fails'
        check(cfg)
        use(cfg)
    except Exception as error:
        if state == 'fails':
            with suppress(Exception):
                use(original)
                return Result(family, file.name, state, _reason(error))
            state = 'stack'
        return Result(family, file.name, state, _reason(error))
    return Result(family, file.name, 'works')


def _reason(error: Exception) -> str:
    name = '' if isinstance(error, ConfigError) else f'{type(error).__name__}: '
    return short_text(name + ' '.join(str(error).split()))
