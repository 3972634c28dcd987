"""Reading the table of configs for tools/compare.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.fileio import load

from mmfocalnet.checkpoints import cached_reads
from mmfocalnet.cli.misspellings import REGISTRIES, check_names
from mmfocalnet.cli.runner import check_model
from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.config import read_model_config
from mmfocalnet.datasets.data_checks import check_data
from mmfocalnet.errors import UserError
from mmfocalnet.text import short_repr

_NAME = re.compile(r'\w([\w .+-]*[\w.+-])?')


def read_table(path: Path) -> tuple[dict[str, str], dict[str, Config]]:
    """Read a table and check the data and the model of each config.

    Args:
        path: YAML file such as tools/comparison/bccd.yml.

    Returns:
        The titles of the metrics by key, and the configs by name of the row.

    Raises:
        UserError: If the table or a config in it is not correct.
    """
    table = _read_yaml(path)
    _check_fields(str(path), table, ('metrics', 'rows'))
    for part, content in table.items():
        if not isinstance(content, dict) or not content:
            raise UserError(
                f'{part} of {path} must be a dict with at least one entry, got '
                f'{short_repr(content)}: write it as in tools/comparison/bccd.yml.'
            )
    for key, title in table['metrics'].items():
        if not isinstance(key, str) or not isinstance(title, str):
            raise UserError(
                f'metrics of {path} must be titles by name, got {key!r}: {title!r}: write, for '
                'example, coco/bbox_mAP: box AP, with quotes around numbers.'
            )
    with cached_reads():
        return table['metrics'], {
            name: _read_row(path, name, row) for name, row in table['rows'].items()
        }


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f'There is no table {path}: specify a file such as tools/comparison/bccd.yml.'
        )
    try:
        return load(path, file_format='yaml')
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{path} cannot be read as YAML ({reason}): correct it.') from None


def _check_fields(name: str, node: Any, required: tuple[str, ...], optional: str = '') -> None:
    accepted = [*required, optional] if optional else list(required)
    if not isinstance(node, dict) or not set(required) <= set(node) <= set(accepted):
        also = f' and may have {optional}' if optional else ''
        raise UserError(
            f'{name} must have {" and ".join(required)}{also}, got '
            f'{short_repr(list(node) if isinstance(node, dict) else node)}: write it as in '
            'tools/comparison/bccd.yml.'
        )


def _read_row(path: Path, name: Any, row: Any) -> Config:
    if not isinstance(name, str):
        raise UserError(f'{path}: YAML reads the name of a row as {name!r}: put it in quotes.')
    if not _NAME.fullmatch(name):
        raise UserError(
            f'{path}: {name!r} is not the name of a row, which has a folder: use letters, digits, '
            'spaces and ._+-, start with a letter or digit, and end without a space.'
        )
    place = f'Row {name!r} of {path}'
    _check_fields(place, row, ('config',), 'options')
    options = row.get('options', {})
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UserError(
            f'{place}: options must be values by key, got {short_repr(options)}: write, for '
            'example, options: {model.backbone.use_gates: false}.'
        )
    try:
        return _read_training(str(row['config']), options)
    except UserError as error:
        text = str(error).replace('--cfg-options', 'options')
        raise UserError(f'{place}: {text}') from error


def _read_training(config: str, options: dict[str, Any]) -> Config:
    cfg = read_model_config(config, options)
    import_datasets(cfg.get('default_scope'))
    check_names(cfg, *REGISTRIES)
    check_data(cfg, ('train', 'val', 'test'))
    check_model(cfg)
    return cfg
