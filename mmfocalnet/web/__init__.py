"""A web page that tries a model on images and shows its modulation.

It is served from this machine and connects to no other one.
"""

import os

from mmfocalnet.errors import UserError

HOST = '127.0.0.1'
"""Default address to listen on: this machine only."""


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
            f'The web page needs Gradio, which is not installed ({error}). '
            "Run pip install -e '.[web]'."
        ) from error
