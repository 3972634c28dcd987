"""Checks of constructor arguments, each of which names the argument and the value it got."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from mmfocalnet.errors import ConfigError
from mmfocalnet.text import short_repr

# Far beyond any network, and small enough that nothing is laid out in memory before a slip of the
# finger is noticed.
MAX_INTEGER = 2**16


def integer(name: str, value: Any, minimum: int, maximum: int = MAX_INTEGER) -> int:
    """Check an integer, Python's or NumPy's.

    Args:
        name: Name of the argument.
        value: Its value.
        minimum: The smallest value allowed.
        maximum: The largest value allowed. Defaults to `MAX_INTEGER`.

    Returns:
        The value as an int.

    Raises:
        ConfigError: If it is of another type or out of range.
    """
    if not is_integer(value) or value < minimum:
        raise ConfigError(
            f'{name} must be an integer of at least {minimum}, got {short_repr(value)}.'
        )
    if value > maximum:
        raise ConfigError(f'{name} must be at most {maximum}, got {short_repr(value)}.')
    return int(value)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, Python's or NumPy's, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def finite_number(name: str, value: Any) -> float:
    """Take a finite number of at most `MAX_INTEGER` either way.

    Raises:
        ConfigError: If it is of another type or out of range.
    """
    if not _is_real(value) or not -MAX_INTEGER <= value <= MAX_INTEGER:  # NaN is neither
        raise ConfigError(
            f'{name} must be a finite number, {MAX_INTEGER} at most, got {short_repr(value)}.'
        )
    return float(value)


def probability(name: str, value: Any) -> float:
    """Take a probability below 1.

    Raises:
        ConfigError: If it is of another type or out of range.
    """
    if not _is_real(value) or not 0 <= value < 1:
        raise ConfigError(f'{name} must be at least 0 and below 1, got {short_repr(value)}.')
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """Take True or False, Python's or NumPy's.

    Raises:
        ConfigError: If it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f'{name} must be True or False, got {short_repr(value)}.')
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Take one of some words.

    Raises:
        ConfigError: If it is anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            f'{name} must be {" or ".join(map(repr, choices))}, got {short_repr(value)}.'
        )
    return value


def is_list(value: Any) -> bool:
    """Whether a value lists others: a list, a tuple or their like, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
