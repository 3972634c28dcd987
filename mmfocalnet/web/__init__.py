"""A web page that tries a model on pictures: what it finds, and what its modulation looks at.

It is served from this machine and asks nothing of any other one.
"""

import os

from mmfocalnet.errors import UserError

HOST = '127.0.0.1'
"""Where it listens unless told otherwise: for this machine only."""


def need_gradio() -> None:
    """Import Gradio with its analytics switched off.

    Raises:
        UserError: If it is not installed.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The web page needs Gradio, which is not there ({error}): pip install -e '.[web]'."
        ) from error
