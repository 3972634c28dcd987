"""The Gradio components of the web page and their event handlers."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from mmfocalnet.errors import UserError
from mmfocalnet.inference import Predictor
from mmfocalnet.text import short_repr
from mmfocalnet.visualization import find_focalnet
from mmfocalnet.web.analysis import (
    Analysis,
    analyze,
    describe_prediction,
    describe_run,
    draw_maps,
    draw_prediction,
    example_images,
    read_upload,
)
from mmfocalnet.web.request_filter import MAX_MEGABYTES, log_failure
from mmfocalnet.web.uploads import Uploads

SCORE_THR = 0.3
# Maximum number of queued calls; further ones are rejected.
MAX_QUEUE = 16

CSS = """
#score input[type="number"] { pointer-events: none; }
#found img { width: 100%; height: 100%; object-fit: contain; }
#examples .grid-wrap { height: auto; min-height: 0; }
#message p { margin: 0; padding: 0.6em 0.8em; border-left: 4px solid #b91c1c;
  background: #fef2f2; color: #7f1d1d; overflow-wrap: anywhere; }
"""


def _show_errors(outputs: int) -> Callable[[Callable], Callable]:
    """Decorate an event handler: show its error message and keep its other outputs.

    Args:
        outputs: Number of outputs after the message.
    """

    def wrap(handle: Callable) -> Callable:
        @functools.wraps(handle)
        def wrapper(*args: Any) -> list[Any]:
            try:
                return [gr.update(value='', visible=False), *handle(*args)]
            except UserError as error:
                text = str(error)
            except Exception as error:
                log_failure(handle.__name__, error)
                text = 'The server failed on this request. Try another image.'
            message = f'<p role="alert">{html.escape(text)}</p>'
            return [gr.update(value=message, visible=True), *[gr.skip()] * outputs]

        return wrapper

    return wrap


class Handlers:
    """Event handlers of the page. Each returns an error message and its outputs in order.

    All arguments come from the network and are checked.

    Args:
        predictor: The model.
        uploads: The uploaded files.

    Attributes:
        examples: Example images, RGB, uint8 (H, W, 3); may be empty.
        stages: Number of the model's stages.
        levels: Number of focal levels L of the last one.
        has_scores: Whether the model's predictions have scores.
    """

    def __init__(self, predictor: Predictor, uploads: Uploads) -> None:
        self.predictor = predictor
        self.uploads = uploads
        self.examples = example_images(predictor.classes)
        layers = find_focalnet(predictor.model).layers
        self.stages = len(layers)
        self.levels = layers[-1].blocks[-1].modulation.focal_level
        self.has_scores = predictor.task in ('boxes', 'boxes and masks')

    @_show_errors(outputs=8)
    def show_upload(self, key: str, score_thr: float, stage: int) -> list[Any]:
        """Analyze an uploaded image."""
        return self._analyze(read_upload(*self.uploads.take(key)), score_thr, stage)

    @_show_errors(outputs=8)
    def show_example(self, score_thr: float, stage: int, event: gr.SelectData) -> list[Any]:
        """Analyze the example that was clicked."""
        index = _integer('The example', event.index, len(self.examples))
        return self._analyze(self.examples[index][..., ::-1], score_thr, stage)

    @_show_errors(outputs=8)
    def show_first(self, score_thr: float, stage: int) -> list[Any]:
        """Analyze the first example."""
        return self._analyze(self.examples[0][..., ::-1], score_thr, stage)

    @_show_errors(outputs=2)
    def set_score(self, analysis: Analysis | None, score_thr: float) -> list[Any]:
        """Draw and count with another minimum score, without running the model."""
        score_thr = _score(score_thr)
        # No image was analyzed yet, or newer sessions replaced it.
        if analysis is None:
            return [gr.skip()] * 2
        return [draw_prediction(analysis, score_thr), describe_prediction(analysis, score_thr)]

    @_show_errors(outputs=2)
    def set_stage(self, analysis: Analysis | None, stage: int) -> list[Any]:
        """Draw the maps of another stage, without running the model."""
        stage = _integer('The stage', stage, self.stages)
        return [gr.skip()] * 2 if analysis is None else [*draw_maps(analysis, stage)]

    def _analyze(self, image: np.ndarray, score_thr: float, stage: int) -> list[Any]:
        score_thr, stage = _score(score_thr), _integer('The stage', stage, self.stages)
        analysis = analyze(self.predictor, image)
        return [
            analysis,
            describe_run(self.predictor, analysis),
            draw_prediction(analysis, score_thr),
            describe_prediction(analysis, score_thr),
            *draw_maps(analysis, stage),
            gr.update(visible=True),
            gr.update(visible=True),
        ]


def build_interface(handlers: Handlers) -> gr.Blocks:
    """Build the components of the page and connect their events.

    Args:
        handlers: The event handlers.

    Returns:
        The Gradio app of the page.
    """
    image_options = dict(interactive=False, show_label=False, min_width=320, buttons=['fullscreen'])
    # Drawn images are kept for ten minutes.
    settings = dict(analytics_enabled=False, delete_cache=(60, 600))
    with gr.Blocks(title='FocalNet on your images', **settings) as page:
        gr.Markdown('## Predictions and modulation maps')
        run = gr.Markdown('Choose an image to start.', elem_id='run')
        analysis = gr.State()
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
            with gr.Column(scale=3, visible=False) as prediction_column:
                found = gr.Image(height=440, elem_id='found', **image_options)
                count = gr.Markdown(elem_id='count')
                score = gr.Slider(
                    0, 1, SCORE_THR, step=0.01, label='Minimum score',
                    visible=handlers.has_scores, elem_id='score', buttons=[],
                )  # fmt: skip
        with gr.Column(visible=False, elem_id='maps') as maps_column:
            stage = gr.Radio(
                list(range(handlers.stages)), value=handlers.stages - 1, label='Stage',
                info='Gates and modulator of the last block of this stage',
            )  # fmt: skip
            with gr.Row():
                # Widths in proportion to the panels and color bars, so that the heights are equal.
                gates = gr.Image(scale=10 * (handlers.levels + 2) + 4, **image_options)
                modulator = gr.Image(scale=10 * 2 + 4, **image_options)

        shown = [
            message,
            analysis,
            run,
            found,
            count,
            gates,
            modulator,
            prediction_column,
            maps_column,
        ]
        # The handlers check the values: Gradio would print tracebacks of invalid ones.
        plain = dict(api_visibility='private', preprocess=False)
        # One call at a time, because of hooks and timing.
        # Progress is shown on one line, to keep the last prediction visible.
        model = dict(
            concurrency_limit=1, concurrency_id='model', show_progress_on=run, **plain
        )  # fmt: skip
        redraw = dict(show_progress='hidden', **plain)
        # The call contains only the key of the upload. Gradio's value is a path on the server,
        # which a request could change.
        upload.upload(None, upload, key, js="file => file.path.split('/')[0]").then(
            handlers.show_upload, [key, score, stage], shown, **model
        ).then(None, None, upload, js='() => null')
        gallery.select(handlers.show_example, [score, stage], shown, **model)
        if handlers.examples:
            page.load(handlers.show_first, [score, stage], shown, **model)
        score.change(
            handlers.set_score, [analysis, score], [message, found, count],
            trigger_mode='always_last', **redraw,
        )  # fmt: skip
        stage.change(handlers.set_stage, [analysis, stage], [message, gates, modulator], **redraw)
    return page.queue(max_size=MAX_QUEUE, api_open=False)


def _score(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError(f'The minimum score is {short_repr(value)}, expected a number from 0 to 1.')
    return float(value)


def _integer(name: str, value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise UserError(
            f'{name} is {short_repr(value)}, expected an integer from 0 to {count - 1}.'
        )
    return value
