"""What a user can get wrong. The tools print such an error as one sentence and exit with 2."""

from __future__ import annotations


def escape(text: str) -> str:
    """Replace control characters, which a terminal would obey, by escapes such as ``\\x1b``.

    Lines stay lines. Letters of any language stay as they are.
    """
    return ''.join(c if c.isprintable() or c == '\n' else ascii(c)[1:-1] for c in text)


class UserError(ValueError):
    """Bad input that its message explains: what, where, what was expected, what to do next.

    File names in the message are shown with `escape`.
    """

    def __str__(self) -> str:
        return escape(super().__str__())


class OneProcessError(UserError):
    """What one process of a launch may meet alone, so that it says so whatever its rank."""


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or fitted to the model."""


class DataError(UserError):
    """A dataset whose files do not fit together or do not fit the config."""


class ConfigError(UserError):
    """A config that is missing, or that names something that is missing."""
