"""Predict images and videos and write the results to a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from rich.progress import MofNCompleteColumn, Progress

from mmfocalnet.files import replacing
from mmfocalnet.inference.images import MAX_PIXELS, ImageError, read_image
from mmfocalnet.inference.prediction import Prediction
from mmfocalnet.inference.predictor import AnyPredictor
from mmfocalnet.inference.results import Results, save_image
from mmfocalnet.inference.sources import Source

JPEG_SUFFIXES = ('.jpe', '.jpeg', '.jpg')
# For videos without a frame rate.
DEFAULT_FPS = 25.0


class FilePredictor:
    """Predict images and videos. Overlays are written to ``vis/``, the rest by `Results`.

    Args:
        predictor: The model.
        out: Folder to write to.
        score_thr: Minimum score of the boxes that are drawn and written.
        batch_size: Images or frames per batch.

    Attributes:
        results: What was predicted.
        problems: An error message for each input that was skipped.
        interrupted: Whether Ctrl-C ended the predictions.
    """

    def __init__(
        self, predictor: AnyPredictor, out: Path, score_thr: float = 0.3, batch_size: int = 1
    ) -> None:
        self.predictor = predictor
        self.results = Results(out, predictor)
        self.vis = out / 'vis'
        self.score_thr = score_thr
        self.batch_size = batch_size
        self.problems: list[str] = []
        self.interrupted = False

    def __call__(self, sources: Sequence[Source]) -> list[Path]:
        """Predict all sources; those that cannot be read are added to `problems`.

        After Ctrl-C or a failed write, the predictions made so far are still written.

        Returns:
            The files and folders written.
        """
        try:
            self._predict_sources(sources)
        except KeyboardInterrupt:
            self.interrupted = True
            self.problems.append('Interrupted. The remaining inputs are skipped.')
        except BrokenPipeError:  # of stdout
            raise
        except OSError as error:
            self._add_write_error(error)
        if not self.results.images:
            return []
        try:
            return [self.vis, *self.results.close()]
        except OSError as error:
            self._add_write_error(error)
            return [self.vis]

    def _add_write_error(self, error: OSError) -> None:
        self.problems.append(
            f'cannot write {error.filename or self.vis} ({error.strerror}). The remaining inputs '
            'are skipped. Free disk space or choose another --out.'
        )

    def _predict_sources(self, sources: Sequence[Source]) -> None:
        images = [source for source in sources if not source.is_video]
        videos = [source for source in sources if source.is_video]
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
            task = progress.add_task('Predicting', total=len(images) + sum(map(_length, videos)))
            for batch in _batches(images, self.batch_size):
                self._predict_images(batch)
                progress.advance(task, len(batch))
            for video in videos:
                try:
                    for count in self._predict_video(video):
                        progress.advance(task, count)
                except ImageError as error:
                    self.problems.append(str(error))

    def _predict_images(self, sources: list[Source]) -> None:
        images = []
        for source in sources:
            try:
                images.append((source, read_image(source.path)))
            except ImageError as error:
                self.problems.append(str(error))
        for source, prediction in self._predict_batch(images):
            suffix = '.jpg' if source.path.suffix.lower() in JPEG_SUFFIXES else '.png'
            save_image(prediction.overlay, self.vis / f'{source.name}{suffix}')
            self.results.add(prediction, source.name, file_name=source.path.as_posix())

    def _predict_batch(
        self, images: list[tuple[Source, np.ndarray]]
    ) -> list[tuple[Source, Prediction]]:
        """Predict images, without those that the test pipeline rejects."""
        try:
            found = self.predictor.predict([image for _, image in images], self.score_thr)
        except ImageError as error:
            if len(images) > 1:
                return [pair for image in images for pair in self._predict_batch([image])]
            self.problems.append(f'{images[0][0].path} is skipped. {error}')
            return []
        kept = [prediction.above(self.score_thr) for prediction in found]
        return [(source, prediction) for (source, _), prediction in zip(images, kept, strict=True)]

    def _predict_video(self, source: Source) -> Iterator[int]:
        """Predict a video; yield the number of frames of each batch."""
        reader = _open_video(source.path)
        count = 0
        self.vis.mkdir(parents=True, exist_ok=True)
        with replacing(self.vis / f'{source.name}.mp4') as part:
            writer = _video_writer(part, source.path, reader)
            try:
                for batch in _batches(_frames(reader), self.batch_size):
                    for prediction in self._predict_frames(batch, source):
                        writer.write(prediction.overlay[..., ::-1])
                        self._add_frame(prediction, source, count)
                        count += 1
                    yield len(batch)
            finally:
                writer.release()
        if count < reader.frame_cnt:
            self.problems.append(
                f'{source.path}: only {count} of {reader.frame_cnt} frames can be decoded. '
                'Download or re-encode it.'
            )

    def _predict_frames(self, frames: list[np.ndarray], source: Source) -> list[Prediction]:
        try:
            return self.predictor.predict(frames, self.score_thr)
        except ImageError as error:
            raise ImageError(f'{source.path} is skipped. {error}') from error

    def _add_frame(self, prediction: Prediction, source: Source, frame: int) -> None:
        origin: dict[str, Any] = dict(file_name=source.path.as_posix(), frame=frame)
        name = f'{source.name}/{frame:06d}'
        self.results.add(prediction.above(self.score_thr), name, **origin)


def _length(video: Source) -> int:
    return max(0, mmcv.VideoReader(str(video.path)).frame_cnt) if video.path.is_file() else 0


def _open_video(path: Path) -> mmcv.VideoReader:
    if not path.is_file():
        raise ImageError(f'{path} is not a regular file, expected a video.')
    reader = mmcv.VideoReader(str(path))
    width, height = reader.resolution
    if not reader.opened or width * height <= 0:
        raise ImageError(
            f'cannot decode {path}, expected a video such as MP4 (H.264) or AVI. Download or '
            're-encode it.'
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f'{path} has frames of {width}x{height} pixels, expected at most '
            f'{MAX_PIXELS / 1e6:g} million. Scale it down.'
        )
    return reader


def _frames(reader: mmcv.VideoReader) -> Iterator[np.ndarray]:
    # Not by index or iteration, which rely on the number of frames in the header.
    while (frame := reader.read()) is not None:
        yield frame


def _video_writer(path: Path, source: Path, reader: mmcv.VideoReader) -> cv2.VideoWriter:
    codec = cv2.VideoWriter_fourcc(*'mp4v')
    fps = reader.fps if reader.fps > 0 else DEFAULT_FPS
    writer = cv2.VideoWriter(str(path), codec, fps, reader.resolution)
    if not writer.isOpened():
        raise ImageError(
            f'cannot encode {source} with {reader.width}x{reader.height} pixels to {path.parent}. '
            'Install an OpenCV with FFmpeg: pip install opencv-python.'
        )
    return writer


def _batches(items: Sequence[Any] | Iterator[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
