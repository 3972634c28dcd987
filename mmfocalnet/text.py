"""Text in messages: values, keys and file names, shortened and without control characters."""

from __future__ import annotations

from typing import Any


def escape(text: object, max_letters: int | None = None) -> str:
    """Replace control characters, which a terminal would obey, by escapes such as ``\\x1b``.

    Letters of any language stay as they are.

    Args:
        text: A text, path or key.
        max_letters: Where to cut it. Defaults to None: nowhere.
    """
    text = str(text)
    cut = text[:max_letters]
    more = '...' if len(cut) < len(text) else ''
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in cut) + more


def short_repr(value: Any) -> str:
    """Show a value as Python writes it, in one line and cut where it is long."""
    try:
        text = ' '.join(repr(value).split())
    except ValueError:  # Python refuses to write out numbers of thousands of digits
        text = f'a huge {type(value).__name__}'
    return text if len(text) <= 100 else f'{text[:97]}...'


def listed(keys: list[str], what: str) -> str:
    """Name at most ten keys and count the others; nothing for no keys."""
    return f'{what}: {named(keys)}' if keys else ''


def named(keys: list[str]) -> str:
    """At most ten keys, and how many more there are."""
    more = f' and {len(keys) - 10} more' if len(keys) > 10 else ''
    return f'{", ".join(map(shown, keys[:10]))}{more}'


def shown(key: object) -> str:
    """A key as a message can show it: no control characters, at most 300 letters."""
    return escape(key, 300)
