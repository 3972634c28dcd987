"""A web page that shows predictions and modulation maps of a model on uploaded images."""

import os

from mmfocalnet.errors import UserError

HOST = '127.0.0.1'
"""Default address to listen on: this machine only."""


def import_gradio() -> None:
    """Import Gradio with its analytics disabled.

    Raises:
        UserError: If it is not installed.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The web page requires Gradio ({error}). Run pip install -e '.[web]'."
        ) from error
