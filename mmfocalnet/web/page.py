"""The page: its components and event handlers. Needs Gradio."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from mmfocalnet.errors import UserError
from mmfocalnet.inference import Predictor
from mmfocalnet.visualization import find_focalnet
from mmfocalnet.web.guard import MAX_MEGABYTES, Uploads, log_failure
from mmfocalnet.web.look import (
    Look,
    describe_found,
    describe_run,
    draw_found,
    draw_maps,
    look_at,
    read_upload,
    sample_images,
)

SCORE_THR = 0.3
# Waiting calls; further ones are refused.
MAX_QUEUE = 16

CSS = """
#score input[type="number"] { pointer-events: none; }
#found img { width: 100%; height: 100%; object-fit: contain; }
#examples .grid-wrap { height: auto; min-height: 0; }
#message p { margin: 0; padding: 0.6em 0.8em; border-left: 4px solid #b91c1c;
  background: #fef2f2; color: #7f1d1d; overflow-wrap: anywhere; }
"""


def _reports(outputs: int) -> Callable[[Callable], Callable]:
    """Show the error message of an event handler, and leave its other outputs as they are.

    Args:
        outputs: Number of outputs after the message.
    """

    def wrap(handle: Callable) -> Callable:
        @functools.wraps(handle)
        def report(*args: Any) -> list[Any]:
            try:
                return [gr.update(value='', visible=False), *handle(*args)]
            except UserError as error:
                text = str(error)
            except Exception as error:
                log_failure(handle.__name__, error)
                text = 'The server failed on this request. Try another image.'
            message = f'<p role="alert">{html.escape(text)}</p>'
            return [gr.update(value=message, visible=True), *[gr.skip()] * outputs]

        return report

    return wrap


class Handlers:
    """Event handlers of the page. Each returns an error message, then its outputs in order.

    All arguments come from the network, so each is checked.

    Args:
        predictor: The model.
        uploads: The uploaded files.

    Attributes:
        examples: Images to choose from, RGB, uint8 (H, W, 3); may be empty.
        stages: Number of the model's stages.
        levels: Number of focal levels L of the last one.
        has_scores: Whether the model's predictions have scores.
    """

    def __init__(self, predictor: Predictor, uploads: Uploads) -> None:
        self.predictor = predictor
        self.uploads = uploads
        self.examples = sample_images(predictor.classes)
        layers = find_focalnet(predictor.model).layers
        self.stages = len(layers)
        self.levels = layers[-1].blocks[-1].modulation.focal_level
        self.has_scores = predictor.task in ('boxes', 'boxes and masks')

    @_reports(outputs=8)
    def upload(self, key: str, score_thr: float, stage: int) -> list[Any]:
        """Show an uploaded image."""
        return self._show(read_upload(*self.uploads.take(key)), score_thr, stage)

    @_reports(outputs=8)
    def example(self, score_thr: float, stage: int, event: gr.SelectData) -> list[Any]:
        """Show the example that was clicked."""
        index = _integer('The example', event.index, len(self.examples))
        return self._show(self.examples[index][..., ::-1], score_thr, stage)

    @_reports(outputs=8)
    def first(self, score_thr: float, stage: int) -> list[Any]:
        """Show the first example."""
        return self._show(self.examples[0][..., ::-1], score_thr, stage)

    @_reports(outputs=2)
    def rescore(self, look: Look | None, score_thr: float) -> list[Any]:
        """Draw and count again, without running the model."""
        score_thr = _score(score_thr)
        # No image was shown yet, or newer sessions took its place.
        if look is None:
            return [gr.skip()] * 2
        return [draw_found(look, score_thr), describe_found(look, score_thr)]

    @_reports(outputs=2)
    def restage(self, look: Look | None, stage: int) -> list[Any]:
        """Draw the maps of another stage, without running the model."""
        stage = _integer('The stage', stage, self.stages)
        return [gr.skip()] * 2 if look is None else [*draw_maps(look, stage)]

    def _show(self, image: np.ndarray, score_thr: float, stage: int) -> list[Any]:
        score_thr, stage = _score(score_thr), _integer('The stage', stage, self.stages)
        look = look_at(self.predictor, image)
        return [
            look,
            describe_run(self.predictor, look),
            draw_found(look, score_thr),
            describe_found(look, score_thr),
            *draw_maps(look, stage),
            gr.update(visible=True),
            gr.update(visible=True),
        ]


def build_page(handlers: Handlers) -> gr.Blocks:
    """Lay the page out and connect its parts.

    Args:
        handlers: What its events call.

    Returns:
        The page, not served yet.
    """
    drawn = dict(interactive=False, show_label=False, min_width=320, buttons=['fullscreen'])
    # Drawn images are kept for ten minutes.
    settings = dict(analytics_enabled=False, delete_cache=(60, 600))
    with gr.Blocks(title='FocalNet on your images', **settings) as page:
        gr.Markdown('## What the model finds, and what its modulation looks at')
        run = gr.Markdown('Choose an image to start.', elem_id='run')
        look = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = gr.File(label=f'Image, up to {MAX_MEGABYTES} MB', height=150)
                key = gr.Textbox(visible=False)
                message = gr.HTML(visible=False, elem_id='message')
                gallery = gr.Gallery(
                    handlers.examples, columns=3, height='auto', show_label=False,
                    visible=bool(handlers.examples), interactive=False, allow_preview=False,
                    buttons=[], elem_id='examples',
                )  # fmt: skip
            with gr.Column(scale=3, visible=False) as found_side:
                found = gr.Image(height=440, elem_id='found', **drawn)
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
                gates = gr.Image(scale=10 * (handlers.levels + 2) + 4, **drawn)
                modulator = gr.Image(scale=10 * 2 + 4, **drawn)

        shown = [message, look, run, found, count, gates, modulator, found_side, maps_side]
        # The handlers check the values: Gradio would print tracebacks of wrong ones.
        plain = dict(api_visibility='private', preprocess=False)
        # The model serves one call at a time: hooks and timing are not for two.
        # Progress and errors of a call do not cover the last prediction.
        model = dict(
            concurrency_limit=1, concurrency_id='model', show_progress_on=run, **plain
        )  # fmt: skip
        redraw = dict(show_progress='hidden', **plain)
        # The call contains only the key of the upload. Gradio's own value is a path on the server,
        # which a request could change to another one.
        upload.upload(None, upload, key, js="file => file.path.split('/')[0]").then(
            handlers.upload, [key, score, stage], shown, **model
        ).then(None, None, upload, js='() => null')
        gallery.select(handlers.example, [score, stage], shown, **model)
        if handlers.examples:
            page.load(handlers.first, [score, stage], shown, **model)
        score.change(
            handlers.rescore, [look, score], [message, found, count], trigger_mode='always_last',
            **redraw,
        )  # fmt: skip
        stage.change(handlers.restage, [look, stage], [message, gates, modulator], **redraw)
    return page.queue(max_size=MAX_QUEUE, api_open=False)


def _score(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError(f'The lowest score is {_short(value)}. Expected a number from 0 to 1.')
    return float(value)


def _integer(what: str, value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise UserError(f'{what} is {_short(value)}. Expected an integer from 0 to {count - 1}.')
    return value


def _short(value: Any) -> str:
    return repr(value)[:50]
