"""What a user can get wrong. The tools print such an error as one sentence and exit with 2."""

from __future__ import annotations

from mmfocalnet.text import escape


class UserError(ValueError):
    """Bad input that its message explains: what, where, what was expected, what to do next.

    Control characters in the message, as file names may have, are escaped.
    """

    def __str__(self) -> str:
        return '\n'.join(map(escape, super().__str__().split('\n')))


class OneProcessError(UserError):
    """What one process of a launch may meet alone, so that it says so whatever its rank."""


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or fitted to the model."""


class DataError(UserError):
    """A dataset whose files do not fit together or do not fit the config."""


class ConfigError(UserError):
    """A config that is missing, or that names something that is missing."""
