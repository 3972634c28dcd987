"""The text of a config that inherits another one and states only what differs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 100  # characters per line


def child_config(
    base: str,
    old: Mapping,
    new: Mapping,
    notes: Mapping[str, str],
    variables: Sequence[str] = (),
) -> str:
    """Write a config that turns another one into a changed copy of it.

    A list of dicts that keeps its types is changed element by element, any other list is written
    in full.

    Args:
        base: The value of ``_base_``.
        old: The config that ``base`` resolves to.
        new: The changed copy.
        notes: Comments by the dotted key of the setting that they explain.
        variables: Settings at the top level that settings of the same name and value refer to.

    Returns:
        Python code of the config.
    """
    lines = [f'_base_ = {base!r}']
    for name in variables:
        lines += _item(name, new[name], name, notes, indent=0)
    changed = _Changes(old, {name: new[name] for name in variables})
    new = {k: v if k in variables else _refer(v, new, variables) for k, v in new.items()}
    written: dict[str, str] = {}
    for key in sorted(new, key=lambda key: key != 'custom_imports'):  # first, the others in order
        value = new[key]
        if key not in variables and (key not in old or old[key] != value):
            edits: list[str] = []
            changes = changed.of(old, new, key, key, edits)
            same = written.setdefault(format_value([changes, *edits]), key)
            if same != key and isinstance(changes, Mapping):
                lines.append(f'{key} = {same}')
                continue
            lines += edits
            if changes != key:  # the edits of a list at the top level are complete
                lines += _item(key, changes, key, notes, indent=0)
    return '\n'.join(lines) + '\n'


class _Code(str):
    """An expression of the config, such as the name of a variable."""


def _refer(node: Any, config: Mapping, variables: Sequence[str], key: str = '') -> Any:
    """A copy of a part of the config with the names of variables instead of their values."""
    if key in variables and node == config[key]:
        return _Code(key)
    if isinstance(node, Mapping):
        return {k: _refer(v, config, variables, k) for k, v in node.items()}
    if isinstance(node, list):
        return [_refer(v, config, variables) for v in node]
    for name in variables if isinstance(node, str) else ():
        if isinstance(config[name], str) and node.startswith(config[name]):
            return _Code(f'{name} + {node[len(config[name]) :]!r}')
    return node


class _Changes:
    """Finds what the child config has to state.

    Args:
        config: The base config.
        variables: Values of the variables of the child config.
    """

    def __init__(self, config: Mapping, variables: Mapping[str, Any]) -> None:
        self.config, self.variables = config, dict(variables)

    def of(self, old: Mapping, new: Mapping, key: str, path: str, edits: list[str]) -> Any:
        """The changes of a key at a path of the config; statements before it go to ``edits``."""
        before, after = old.get(key), new[key]
        if isinstance(after, Mapping):
            if not isinstance(before, Mapping):
                # MMEngine merges a dict into another value only if told to replace it.
                return {'_delete_': True, **after} if key in old else dict(after)
            if not set(before) <= set(after) or before.get('type') != after.get('type'):
                return {'_delete_': True, **after}
            return {
                k: self.of(before, after, k, f'{path}.{k}', edits)
                for k, value in after.items()
                if k not in before or before[k] != value
            }
        if isinstance(before, Mapping) and isinstance(self.variables.get(after), Mapping):
            if not set(before) <= set(self.variables[after]):
                return _Code(f'dict(_delete_=True, **{after})')
        if not _can_edit(before, after):
            return after
        # A setting of the base config must keep its value.
        name = f'new_{key}' if key in self.config and key != path else key
        if self.variables.get(name) != after:
            edits += _list_edits(name, before, after, path)
        self.variables[name] = after
        return _Code(name)


def _can_edit(before: Any, after: Any) -> bool:
    """Whether one list of dicts becomes the other by setting keys."""
    return (
        isinstance(before, list)
        and isinstance(after, list)
        and len(before) == len(after)
        and all(
            isinstance(b, Mapping) and isinstance(a, Mapping) and set(b) <= set(a)
            for b, a in zip(before, after, strict=True)
        )
    )


def _list_edits(name: str, before: list, after: list, path: str) -> Iterator[str]:
    yield f'{name} = _base_.{path}'
    edits = [list(_assignments(b, a)) for b, a in zip(before, after, strict=True)]
    if len(edits) > 1 and all(edit == edits[0] for edit in edits):
        yield f'for part in {name}:'
        yield from (f'    part{edit}' for edit in edits[0])
    else:
        yield from (f'{name}[{i}]{edit}' for i, part in enumerate(edits) for edit in part)


def _assignments(before: Mapping, after: Mapping) -> Iterator[str]:
    """Assignments that turn one dict into another, from the point after its name."""
    for key, value in after.items():
        old = before.get(key)
        if key in before and old == value:
            continue
        if isinstance(old, Mapping) and isinstance(value, Mapping) and set(old) <= set(value):
            yield from (f'.{key}{edit}' for edit in _assignments(old, value))
        elif _can_edit(old, value):
            for i, (b, a) in enumerate(zip(old, value, strict=True)):
                yield from (f'.{key}[{i}]{edit}' for edit in _assignments(b, a))
        else:
            yield f'.{key} = {format_value(value)}'


def _item(key: str, value: Any, path: str, notes: Mapping[str, str], indent: int) -> Iterator[str]:
    """The lines of ``key=value`` in a dict, or of an assignment at the top level."""
    pad = ' ' * indent
    start, end = (f'{pad}{key} = ', '') if indent == 0 else (f'{pad}{key}=', ',')
    note = f'  # {notes[path]}' if path in notes else ''
    line = f'{start}{format_value(value)}{end}'
    if not any(other.startswith(f'{path}.') for other in notes) and len(line) <= WIDTH:
        yield from [line + note] if len(line + note) <= WIDTH else [pad + note[2:], line]
        return
    if note:
        yield pad + note[2:]
    if isinstance(value, Mapping) and all(str(k).isidentifier() for k in value):
        yield f'{start}dict('
        for k, v in value.items():
            yield from _item(k, v, f'{path}.{k}', notes, indent + 4)
        yield f'{pad}){end}'
    else:
        yield from _long_item(start, value, end, pad)


def _long_item(start: str, value: Any, end: str, pad: str) -> Iterator[str]:
    if isinstance(value, list) and value:
        yield f'{start}['
        for element in value:
            yield f'{pad}    {format_value(element)},'
        yield f'{pad}]{end}'
    else:
        yield f'{start}{format_value(value)}{end}'


def format_value(value: Any) -> str:
    """Format a value of a config as Python code in one line."""
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, Mapping):
        items = {k: format_value(v) for k, v in value.items() if k != '_scope_'}
        if all(isinstance(k, str) and k.isidentifier() for k in items):
            return f'dict({", ".join(f"{k}={v}" for k, v in items.items())})'
        return '{' + ', '.join(f'{k!r}: {v}' for k, v in items.items()) + '}'
    if isinstance(value, list):
        return _format_runs(value) or f'[{", ".join(map(format_value, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(format_value, value))}{"," if len(value) == 1 else ""})'
    return repr(value)


def _format_runs(values: list) -> str:
    """A long list of equal numbers as ``[1.0] * 80 + [0.1]``; empty for others."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(values)]
    if len(values) <= 2 * len(runs) or not all(isinstance(v, (int, float)) for v in values):
        return ''
    return ' + '.join(
        f'[{value!r}] * {count}' if count > 1 else f'[{value!r}]' for value, count in runs
    )
