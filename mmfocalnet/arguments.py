"""Checks of constructor arguments. Their errors contain the argument's name and value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np

from mmfocalnet.errors import ConfigError
from mmfocalnet.text import short_repr


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Return a Python or NumPy integer as an int.

    Args:
        name: Name of the argument.
        value: Its value.
        minimum: Smallest allowed value.
        maximum: Largest allowed value. Defaults to None: unlimited.

    Raises:
        ConfigError: If it is not an integer or out of range.
    """
    if not is_integer(value) or value < minimum or (maximum is not None and value > maximum):
        limit = f'at least {minimum}' if maximum is None else f'from {minimum} to {maximum}'
        raise ConfigError(f'{name} must be an integer, {limit}, got {short_repr(value)}.')
    return int(value)


def finite_number(name: str, value: Any) -> float:
    """Return a number that is neither NaN nor infinite as a float.

    Raises:
        ConfigError: If it is not such a number.
    """
    if not _is_real(value) or not math.isfinite(value):
        raise ConfigError(f'{name} must be a finite number, got {short_repr(value)}.')
    return float(value)


def probability(name: str, value: Any) -> float:
    """Return a probability in [0, 1) as a float.

    Raises:
        ConfigError: If it is not a number or out of range.
    """
    if not _is_real(value) or not 0 <= value < 1:
        raise ConfigError(f'{name} must be at least 0 and below 1, got {short_repr(value)}.')
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """Return Python's or NumPy's True or False as a bool.

    Raises:
        ConfigError: If it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f'{name} must be True or False, got {short_repr(value)}.')
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return the value if it is one of the choices.

    Raises:
        ConfigError: If it is anything else.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            f'{name} must be {" or ".join(map(repr, choices))}, got {short_repr(value)}.'
        )
    return value


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or NumPy integer and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a sequence, such as a list or a tuple, but not a string."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
