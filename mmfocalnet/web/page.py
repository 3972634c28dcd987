"""The page itself: its parts, what their events do, and the server. Needs Gradio."""

from __future__ import annotations

import html
import os
import socket
import tempfile
from typing import Any

import gradio as gr
import numpy as np

from mmfocalnet.errors import UserError
from mmfocalnet.inference import Predictor
from mmfocalnet.visualization import find_focalnet
from mmfocalnet.web.look import (
    Look,
    describe_found,
    describe_run,
    draw_found,
    draw_maps,
    look_at,
    read_upload,
    sample_pictures,
)

MAX_MEGABYTES = 20
SCORE_THR = 0.3
# Each open page keeps its last prediction in memory, the masks of a large one 300 MB.
MAX_SESSIONS = 8

CSS = """
#score input[type="number"] { pointer-events: none; }
#found img { width: 100%; height: 100%; object-fit: contain; }
#examples .grid-wrap { height: auto; min-height: 0; }
#message p { margin: 0; padding: 0.6em 0.8em; border-left: 4px solid #b91c1c;
  background: #fef2f2; color: #7f1d1d; }
"""


class Handlers:
    """What happens on the page's events; each returns one update per output, in order.

    Attributes:
        examples: Pictures to choose from, RGB, uint8 (H, W, 3); perhaps none.
        stages: Number of the model's stages.
        levels: Number of focal levels L of the last one.
        has_scores: Whether the model's predictions have scores.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.examples = sample_pictures(predictor.classes)
        layers = find_focalnet(predictor.model).layers
        self.stages = len(layers)
        self.levels = layers[-1].blocks[-1].modulation.focal_level
        self.has_scores = predictor.task in ('boxes', 'boxes and masks')

    def upload(self, path: str, score_thr: float, stage: int) -> list[Any]:
        """Show an uploaded picture, or say what is wrong with it and leave the rest."""
        try:
            return self._show(read_upload(path), score_thr, stage)
        except UserError as error:
            message = f'<p role="alert">{html.escape(str(error))}</p>'
            return [gr.update(value=message, visible=True), *[gr.skip()] * OUTPUTS]

    def example(self, score_thr: float, stage: int, event: gr.SelectData) -> list[Any]:
        """Show the example that was clicked."""
        return self._show(self.examples[event.index][..., ::-1], score_thr, stage)

    def first(self, score_thr: float, stage: int) -> list[Any]:
        """Show the first example."""
        return self._show(self.examples[0][..., ::-1], score_thr, stage)

    def rescore(self, look: Look | None, score_thr: float) -> tuple[Any, Any]:
        """Draw and count again, without running the model."""
        # There is no picture yet, or it was forgotten in favour of other sessions'.
        if look is None:
            return gr.skip(), gr.skip()
        return draw_found(look, score_thr), describe_found(look, score_thr)

    def restage(self, look: Look | None, stage: int) -> tuple[Any, Any]:
        """Draw the maps of another stage, without running the model."""
        return (gr.skip(), gr.skip()) if look is None else draw_maps(look, stage)

    def _show(self, image: np.ndarray, score_thr: float, stage: int) -> list[Any]:
        look = look_at(self.predictor, image)
        return [
            gr.update(value='', visible=False),
            look,
            describe_run(self.predictor, look),
            draw_found(look, score_thr),
            describe_found(look, score_thr),
            *draw_maps(look, stage),
            gr.update(visible=True),
            gr.update(visible=True),
        ]


# Of `Handlers._show`, without the message.
OUTPUTS = 8


def build_page(handlers: Handlers) -> gr.Blocks:
    """Lay the page out and connect its parts.

    Args:
        handlers: What its events call.

    Returns:
        The page, not served yet.
    """
    picture = dict(interactive=False, show_label=False, buttons=['fullscreen'])
    # Drawn pictures are kept for ten minutes.
    settings = dict(analytics_enabled=False, delete_cache=(60, 600))
    with gr.Blocks(title='FocalNet on your pictures', **settings) as page:
        gr.Markdown('## What the model finds, and what its modulation looks at')
        run = gr.Markdown('Choose a picture to start.', elem_id='run')
        look = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = gr.File(label=f'Picture, up to {MAX_MEGABYTES} MB', height=150)
                message = gr.HTML(visible=False, elem_id='message')
                gallery = gr.Gallery(
                    handlers.examples, columns=3, height='auto', show_label=False,
                    visible=bool(handlers.examples), interactive=False, allow_preview=False,
                    buttons=[], elem_id='examples',
                )  # fmt: skip
            with gr.Column(scale=3, visible=False) as found_side:
                found = gr.Image(height=440, elem_id='found', **picture)
                count = gr.Markdown(elem_id='count')
                score = gr.Slider(
                    0, 1, SCORE_THR, step=0.01, label='Lowest score shown',
                    visible=handlers.has_scores, elem_id='score', buttons=[],
                )  # fmt: skip
        with gr.Column(visible=False, elem_id='maps') as maps_side:
            stage = gr.Radio(
                list(range(handlers.stages)), value=handlers.stages - 1, label='Stage',
                info='Gates and modulator of the last block of this stage',
            )  # fmt: skip
            with gr.Row():
                # As wide as their panels and colour bars, so that these are of one height.
                gates = gr.Image(scale=10 * (handlers.levels + 2) + 4, **picture)
                modulator = gr.Image(scale=10 * 2 + 4, **picture)

        shown = [message, look, run, found, count, gates, modulator, found_side, maps_side]
        # The model serves one call at a time: hooks and timing are not for two.
        model = dict(concurrency_limit=1, concurrency_id='model', api_visibility='private')
        redraw = dict(api_visibility='private', show_progress='hidden')
        upload.upload(handlers.upload, [upload, score, stage], shown, **model).then(
            lambda: None, None, upload, api_visibility='private'
        )
        gallery.select(handlers.example, [score, stage], shown, **model)
        if handlers.examples:
            page.load(handlers.first, [score, stage], shown, **model)
        score.change(
            handlers.rescore, [look, score], [found, count], trigger_mode='always_last', **redraw
        )
        stage.change(handlers.restage, [look, stage], [gates, modulator], **redraw)
    return page


def serve(predictor: Predictor, host: str, port: int | None = None) -> None:
    """Serve the page until it is interrupted.

    Args:
        predictor: The model to try.
        host: Address to listen on, such as `mmfocalnet.web.HOST`.
        port: Port to listen on. Defaults to None: the first free one from 7860.

    Raises:
        UserError: If host or port cannot be used.
    """
    _check_address(host, port)
    # Not the first visitor's wait: what is compiled or tuned at the first run.
    predictor.predict([np.zeros((64, 64, 3), np.uint8)])
    with tempfile.TemporaryDirectory(prefix='mmfocalnet-web-') as folder:
        # Gradio keeps pictures in files and leaves them behind.
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = build_page(Handlers(predictor))
        _, url, _ = page.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, quiet=True,
            prevent_thread_lock=True, footer_links=[], max_file_size=f'{MAX_MEGABYTES}mb',
            state_session_capacity=MAX_SESSIONS, css=CSS,
            # Its default fonts are asked of Google.
            theme=gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
        )  # fmt: skip
        print(f'The page is at {url} until Ctrl-C.', flush=True)
        page.block_thread()


def _check_address(host: str, port: int | None) -> None:
    # Gradio would try a hundred ports of an address that this machine does not have.
    try:
        socket.create_server((host, port or 0)).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f'The page cannot be served on --host {host}, --port {port or "7860 and up"} '
            f'({error}): give an address of this machine and a free port.'
        ) from error
