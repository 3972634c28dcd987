"""Predicting whole lists of pictures and videos into a folder: what tools/infer.py does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.utils import ProgressBar

from mmfocalnet.files import replacing
from mmfocalnet.inference.images import MAX_PIXELS, ImageError, read_image
from mmfocalnet.inference.prediction import Prediction
from mmfocalnet.inference.predictor import Predictor
from mmfocalnet.inference.results import Results, save_picture
from mmfocalnet.inference.sources import Source

JPEG = ('.jpe', '.jpeg', '.jpg')
# For videos that do not tell theirs.
FRAMES_PER_SECOND = 25.0


class Run:
    """Predicts pictures and videos; overlays go to ``vis/``, the rest to `Results`.

    Args:
        predictor: The model.
        out: Folder to write to.
        score_thr: Boxes of lower scores are neither drawn nor written.
        batch_size: Pictures or frames per batch.

    Attributes:
        problems: A sentence for each input that is left out.
        interrupted: Whether Ctrl-C ended it.
    """

    def __init__(
        self, predictor: Predictor, out: Path, score_thr: float = 0.3, batch_size: int = 1
    ) -> None:
        self.predictor = predictor
        self.results = Results(out, predictor)
        self.drawn = out / 'vis'
        self.score_thr = score_thr
        self.batch_size = batch_size
        self.problems: list[str] = []
        self.interrupted = False
        self.bar = ProgressBar(start=False, file=sys.stdout)

    def __call__(self, sources: Sequence[Source]) -> list[Path]:
        """Predict all; what cannot be read ends up in `problems`.

        What was predicted before Ctrl-C, or before the disk was full, is written all the same.

        Returns:
            The files and folders written.
        """
        try:
            self._all(sources)
        except KeyboardInterrupt:
            self.interrupted = True
            self.problems.append('Interrupted: what had not been predicted by then is left out.')
        except BrokenPipeError:  # of stdout, to which the bar is printed
            raise
        except OSError as error:
            self._cannot_write(error)
        print()  # the bar leaves its line open
        if not self.results.images:
            return []
        try:
            return [self.drawn, *self.results.close()]
        except OSError as error:
            self._cannot_write(error)
            return [self.drawn]

    def _cannot_write(self, error: OSError) -> None:
        self.problems.append(
            f'{error.filename or self.drawn} cannot be written ({error.strerror}), and what comes '
            'after it is left out: make room there or choose another --out.'
        )

    def _all(self, sources: Sequence[Source]) -> None:
        pictures = [source for source in sources if not source.is_video]
        videos = [source for source in sources if source.is_video]
        self.bar.task_num = len(pictures) + sum(map(_length, videos))
        self.bar.start()
        for batch in _batches(iter(pictures), self.batch_size):
            self._pictures(batch)
        for video in videos:
            try:
                self._video(video)
            except ImageError as error:
                named = str(error) if str(video.path) in str(error) else f'{video.path}: {error}'
                self.problems.append(named)

    def _pictures(self, sources: list[Source]) -> None:
        read = []
        for source in sources:
            try:
                read.append((source, read_image(source.path)))
            except ImageError as error:
                self.problems.append(str(error))
        for (source, _), prediction in zip(read, self._predict(read), strict=True):
            if prediction is not None:
                suffix = '.jpg' if source.path.suffix.lower() in JPEG else '.png'
                save_picture(prediction.overlay, self.drawn / f'{source.name}{suffix}')
                self.results.add(prediction, source.name, file_name=source.path.as_posix())
        self.bar.update(len(sources))

    def _predict(self, read: list[tuple[Source, np.ndarray]]) -> list[Prediction | None]:
        """Predict a batch; without those that the model's test pipeline cannot take."""
        try:
            found = self.predictor.predict([image for _, image in read], self.score_thr)
            return [prediction.above(self.score_thr) for prediction in found]
        except ImageError as error:
            if len(read) > 1:
                return [self._predict([one])[0] for one in read]
            self.problems.append(f'{read[0][0].path} is left out: {error}')
            return [None]

    def _video(self, source: Source) -> None:
        reader = _open(source.path)
        count = 0
        self.drawn.mkdir(parents=True, exist_ok=True)
        with replacing(self.drawn / f'{source.name}.mp4') as part:
            writer = _writer(part, reader)
            try:
                for batch in _batches(_frames(reader), self.batch_size):
                    for prediction in self.predictor.predict(batch, self.score_thr):
                        writer.write(prediction.overlay[..., ::-1])
                        self._add_frame(prediction, source, count)
                        count += 1
                    self.bar.update(len(batch))
            finally:
                writer.release()
        if count < reader.frame_cnt:
            self.problems.append(
                f'{source.path} states {reader.frame_cnt} frames, of which {count} can be decoded; '
                'expected a whole video: fetch it again, or re-encode it.'
            )

    def _add_frame(self, prediction: Prediction, source: Source, frame: int) -> None:
        origin: dict[str, Any] = dict(file_name=source.path.as_posix(), frame=frame)
        name = f'{source.name}/{frame:06d}'
        self.results.add(prediction.above(self.score_thr), name, **origin)


def _length(video: Source) -> int:
    return max(0, mmcv.VideoReader(str(video.path)).frame_cnt) if video.path.is_file() else 0


def _open(path: Path) -> mmcv.VideoReader:
    if not path.is_file():
        raise ImageError(f'{path} is no file; expected a video: give a file.')
    reader = mmcv.VideoReader(str(path))
    width, height = reader.resolution
    if not reader.opened or width * height <= 0:
        raise ImageError(
            f'{path} cannot be decoded; expected a video such as MP4 (H.264) or AVI: re-encode '
            'it, or fetch it again.'
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f'{path} has frames of {width}x{height} pixels; at most {MAX_PIXELS / 1e6:g} million '
            'fit: scale it down.'
        )
    return reader


def _frames(reader: mmcv.VideoReader) -> Iterator[np.ndarray]:
    # Not by index or iteration, which trust the number of frames that the file states.
    while (frame := reader.read()) is not None:
        yield frame


def _writer(path: Path, reader: mmcv.VideoReader) -> cv2.VideoWriter:
    codec = cv2.VideoWriter_fourcc(*'mp4v')
    fps = reader.fps if reader.fps > 0 else FRAMES_PER_SECOND
    writer = cv2.VideoWriter(str(path), codec, fps, reader.resolution)
    if not writer.isOpened():
        raise ImageError(
            f'A video of {reader.width}x{reader.height} pixels cannot be encoded to {path.parent}: '
            'expected an OpenCV with FFmpeg: pip install opencv-python.'
        )
    return writer


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch
