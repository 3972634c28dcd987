"""Format values, keys and file names for messages: short, in one line, no control characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def escape(text: object, max_length: int | None = None) -> str:
    """Replace control characters, which a terminal would interpret, by escapes such as ``\\x1b``.

    Letters of all alphabets are kept.

    Args:
        text: A text, path or key.
        max_length: Number of characters after which to cut. Defaults to None: do not cut.
    """
    text = str(text)
    cut = text[:max_length]
    more = '...' if len(cut) < len(text) else ''
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in cut) + more


def short_text(text: object) -> str:
    """Escape a text, path or key and cut it after 300 characters."""
    return escape(text, 300)


def short_repr(value: Any) -> str:
    """The `repr` of a value in one line, cut after 100 characters."""
    try:
        text = ' '.join(repr(value).split())
    except ValueError:  # Python does not format integers of thousands of digits
        text = f'a huge {type(value).__name__}'
    return text if len(text) <= 100 else f'{text[:97]}...'


def join_keys(keys: Sequence[str], label: str = '') -> str:
    """Join the first ten keys and count the others.

    Args:
        keys: State dict keys, file names or similar.
        label: Placed before them, as in ``'missing keys: a, b'``. Defaults to ``''``: none.

    Returns:
        The text; empty if there are no keys.
    """
    if not keys:
        return ''
    more = f' and {len(keys) - 10} more' if len(keys) > 10 else ''
    return f'{label}{": " if label else ""}{", ".join(map(short_text, keys[:10]))}{more}'


def fold_name(name: str) -> str:
    """Return a name without case, spaces and punctuation, to compare names of classes."""
    return ''.join(filter(str.isalnum, name)).casefold()
