"""The text of a config that inherits another one and states only what differs."""

from __future__ import annotations

import itertools
import textwrap
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
        variables: Settings at the top level that settings of the same name and value refer to. They
            are left out if no setting does.

    Returns:
        Python code of the config.
    """
    lines: list[str] = []
    edited = _EditedLists(old)
    used = _Variables({name: new[name] for name in variables})
    written: dict[str, str] = {}
    for key in sorted(new, key=lambda key: key != 'custom_imports'):  # first, the others in order
        if key in variables or (key in old and old[key] == new[key]):
            continue
        edits: list[str] = []
        changes = _changes(old, new, key, key, edits, edited)
        text = format_value(changes)
        same = written.get(text)
        # Settings for evaluation must not change when a user edits those for training.
        if same and not same.startswith('train_') and not edits and isinstance(changes, Mapping):
            lines.append(f'{key} = {same}')
            continue
        written[text] = key  # with edits, the variables in the text have other values than before
        lines += [line for edit in edits for line in _wrap(edit)]
        if changes != key:  # the edits of a list at the top level are complete
            lines += _item(key, used.refer(changes, key), key, notes, indent=0)
    start = [f'_base_ = {base!r}']
    for name in variables:
        if name in used.names:
            start += _item(name, new[name], name, notes, indent=0)
    return '\n'.join([*start, *lines]) + '\n'


class _Code(str):
    """An expression of the config, such as the name of a variable."""


class _Variables:
    """Variables of the child config that its settings refer to.

    Args:
        values: Values by name.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.names: set[str] = set()

    def refer(self, node: Any, key: str) -> Any:
        """A copy of the setting of a key with the names of variables instead of their values."""
        if key in self.values and node == self.values[key]:
            return self._use(key, key)
        if isinstance(node, Mapping):
            if key in self.values and node == {'_delete_': True, **self.values[key]}:
                return self._use(key, f'dict(_delete_=True, **{key})')
            return {k: self.refer(v, k) for k, v in node.items()}
        if isinstance(node, list):
            return [self.refer(v, '') for v in node]
        for name, value in self.values.items() if isinstance(node, str) else ():
            if isinstance(value, str) and node.startswith(value):
                return self._use(name, f'{name} + {node[len(value) :]!r}')
        return node

    def _use(self, name: str, code: str) -> _Code:
        self.names.add(name)
        return _Code(code)


def _changes(
    old: Mapping, new: Mapping, key: str, path: str, edits: list[str], edited: _EditedLists
) -> Any:
    """The changes of a key at a path of the config; statements before it go to ``edits``."""
    before, after = old.get(key), new[key]
    if isinstance(after, Mapping):
        if not isinstance(before, Mapping):
            # MMEngine merges a dict into another value only if told to replace it.
            return {'_delete_': True, **after} if key in old else dict(after)
        if not set(before) <= set(after) or before.get('type') != after.get('type'):
            return {'_delete_': True, **after}
        return {
            k: _changes(before, after, k, f'{path}.{k}', edits, edited)
            for k, value in after.items()
            if k not in before or before[k] != value
        }
    assignments = _assignments(before, after) if isinstance(after, list) else None
    if assignments is None:
        return after
    name, statements = edited.edit(key, path, after, assignments)
    edits += statements
    return _Code(name)


class _EditedLists:
    """Variables of the child config that hold lists of the base config with changes.

    Args:
        config: The base config.
    """

    def __init__(self, config: Mapping) -> None:
        self.config = config
        self.values: dict[str, list] = {}

    def edit(
        self, key: str, path: str, value: list, assignments: list[str]
    ) -> tuple[str, list[str]]:
        """The variable with the changed list, and the statements that set it."""
        # A setting of the base config must keep its value.
        name = f'new_{key}' if key in self.config and key != path else key
        if self.values.get(name) == value:
            return name, []
        self.values[name] = value
        statements = [f'{name} = _base_.{path}']
        count = len(assignments) // len(value)
        each = [a.removeprefix('[0]') for a in assignments[:count]]
        if len(value) > 1 and assignments == [f'[{i}]{a}' for i in range(len(value)) for a in each]:
            return name, [*statements, f'for part in {name}:', *(f'    part{a}' for a in each)]
        return name, [*statements, *(f'{name}{a}' for a in assignments)]


def _assignments(before: Any, after: Any) -> list[str] | None:
    """Assignments that turn one value into another, from the point after its name.

    None if they do not suffice, as for numbers, or for lists of different lengths.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if not set(before) <= set(after) or before.get('type') != after.get('type'):
            return None
        pairs = [
            (f'.{k}' if str(k).isidentifier() else f'[{k!r}]', before.get(k), v)
            for k, v in after.items()
        ]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(f'[{i}]', b, a) for i, (b, a) in enumerate(zip(before, after, strict=True))]
    else:
        return None
    found = []
    for name, old, new in pairs:
        if old == new and type(old) is type(new):
            continue
        inner = _assignments(old, new)
        if inner is None and isinstance(after, list):
            return None
        found += [f'{name} = {format_value(new)}'] if inner is None else [name + i for i in inner]
    return found


def _wrap(statement: str) -> list[str]:
    """Split a long assignment without strings at its spaces."""
    if len(statement) <= WIDTH or "'" in statement:
        return [statement]
    return textwrap.wrap(
        statement, WIDTH, subsequent_indent='    ', break_long_words=False, break_on_hyphens=False
    )


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
