"""Checks of constructor arguments, each of which names the argument and the value it got."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from mmfocalnet.errors import ConfigError
from mmfocalnet.text import in_one_line

# Far beyond any network, and small enough that nothing is laid out in memory before a slip of the
# finger is noticed.
MOST = 2**16


def whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """Take a whole number, Python's or NumPy's.

    Args:
        name: Of the argument.
        value: What was given.
        least: The least that it may be.
        most: The most that it may be. Defaults to `MOST`.

    Returns:
        It as an int.

    Raises:
        ConfigError: If it is of another type or out of range.
    """
    if not is_whole(value) or value < least:
        raise ConfigError(
            f'{name} must be a whole number, {least} or more, got {in_one_line(value)}.'
        )
    if value > most:
        raise ConfigError(f'{name} must be at most {most}, got {in_one_line(value)}.')
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def real(name: str, value: Any) -> float:
    """Take a finite number of at most `MOST` either way.

    Raises:
        ConfigError: If it is of another type or out of range.
    """
    if not _is_real(value) or not -MOST <= value <= MOST:  # NaN is neither
        raise ConfigError(
            f'{name} must be a finite number, {MOST} at most, got {in_one_line(value)}.'
        )
    return float(value)


def rate(name: str, value: Any) -> float:
    """Take a probability below 1.

    Raises:
        ConfigError: If it is of another type or out of range.
    """
    if not _is_real(value) or not 0 <= value < 1:
        raise ConfigError(f'{name} must be at least 0 and below 1, got {in_one_line(value)}.')
    return float(value)


def switch(name: str, value: Any) -> bool:
    """Take True or False, Python's or NumPy's.

    Raises:
        ConfigError: If it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f'{name} must be True or False, got {in_one_line(value)}.')
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Take one of some words.

    Raises:
        ConfigError: If it is anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            f'{name} must be {" or ".join(map(repr, choices))}, got {in_one_line(value)}.'
        )
    return value


def is_list(value: Any) -> bool:
    """Whether a value lists others: a list, a tuple or their like, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
