"""What a user is told."""

from mmfocalnet.errors import UserError


def said_by(call):
    """The one sentence that a call ends in, or None where it goes through."""
    try:
        call()
    except UserError as error:
        message = str(error)
        assert '\n' not in message and len(message) < 2000
        return message
    return None
