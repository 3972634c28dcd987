"""Errors of the user. The tools print them as one error message and exit with code 2."""

from __future__ import annotations

from mmfocalnet.text import escape


class UserError(ValueError):
    """Invalid input. The message contains the input, the expected value and the fix.

    Control characters in the message, which file names may contain, are escaped.
    """

    def __str__(self) -> str:
        return '\n'.join(map(escape, super().__str__().split('\n')))


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class DataError(UserError):
    """A dataset with missing, unreadable or inconsistent files."""


class ConfigError(UserError):
    """A config that is missing, malformed, or refers to something that is missing."""
