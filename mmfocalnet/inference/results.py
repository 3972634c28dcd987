"""Write predictions in COCO's result formats and as label maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfocalnet.compat.panopticapi import id2rgb
from mmfocalnet.files import replacing
from mmfocalnet.inference.prediction import Prediction
from mmfocalnet.inference.predictor import AnyPredictor

# Folder of the maps, by task.
MAP_FOLDERS = {'panoptic': 'panoptic', 'semantic': 'pred'}


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Save grayscale (H, W) or RGB (H, W, 3) as JPEG or PNG, by the suffix; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        # The default chroma subsampling blurs thin lines.
        Image.fromarray(pixels).save(part, quality=95, subsampling=0)


def save_json(content: Any, path: Path) -> None:
    """Save as JSON, atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(content))


class Results:
    """Collect predictions and write them to a folder; docs/inference.md describes the files.

    Category ids are those of the predictor. Semantic maps contain class indices from 0.

    Args:
        out: The folder.
        predictor: The model.

    Attributes:
        task: Task of the model.
        images: The images so far, as in ``images.json``.
        ids_from: The file whose ids are used, or None.
    """

    def __init__(self, out: Path, predictor: AnyPredictor) -> None:
        self.out = out
        self.task = predictor.task
        self.ids, self.ids_from = predictor.category_ids()
        self.categories: list[dict[str, Any]] = [
            dict(id=id_, name=name) for id_, name in zip(self.ids, predictor.classes, strict=True)
        ]
        if self.task == 'panoptic':
            for label, category in enumerate(self.categories):
                category['isthing'] = int(label < predictor.things)
        self.images: list[dict[str, Any]] = []
        self.entries: list[dict[str, Any]] = []

    def add(self, prediction: Prediction, name: str, **origin: Any) -> None:
        """Add a prediction.

        Args:
            prediction: The prediction.
            name: Name of its map, without suffix.
            origin: ``file_name`` and for videos ``frame``.
        """
        image_id = len(self.images) + 1
        height, width = prediction.image.shape[:2]
        self.images.append(dict(id=image_id, **origin, width=width, height=height, name=name))
        if self.task == 'semantic':
            # uint8 as in the annotations of ADE20K, uint16 for more than 256 classes.
            dtype = np.uint8 if len(self.ids) <= 256 else np.uint16
            save_image(prediction.semantic.astype(dtype), self._map_path(name))
        elif self.task == 'panoptic':
            save_image(id2rgb(prediction.panoptic), self._map_path(name))
            self.entries.append(self._segments(prediction, image_id, f'{name}.png'))
        else:
            self.entries += self._boxes(prediction, dict(image_id=image_id, **origin))

    def close(self) -> list[Path]:
        """Write the JSON files; return the files written and the folder of maps."""
        written = [self.out / 'categories.json', self.out / 'images.json']
        save_json(self.categories, written[0])
        save_json(self.images, written[1])
        if self.task in MAP_FOLDERS:
            written.append(self.out / MAP_FOLDERS[self.task])
        if self.task != 'semantic':
            written.append(self.out / 'predictions.json')
            save_json(self._content(), written[-1])
        return written

    def _content(self) -> Any:
        if self.task != 'panoptic':
            return self.entries
        return dict(images=self.images, annotations=self.entries, categories=self.categories)

    def _map_path(self, name: str) -> Path:
        return self.out / MAP_FOLDERS[self.task] / f'{name}.png'

    def _segments(self, prediction: Prediction, image_id: int, file_name: str) -> dict[str, Any]:
        segments = [
            dict(
                id=segment.id,
                category_id=self.ids[segment.label],
                area=segment.area,
                isthing=int(segment.is_thing),
            )
            for segment in prediction.segments
        ]
        return dict(image_id=image_id, file_name=file_name, segments_info=segments)

    def _boxes(self, prediction: Prediction, origin: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for index, (left, top, right, bottom) in enumerate(prediction.boxes.tolist()):
            sides = (left, top, right - left, bottom - top)
            entry = dict(
                **origin,
                category_id=self.ids[int(prediction.labels[index])],
                bbox=[round(side, 2) for side in sides],
                score=round(float(prediction.scores[index]), 5),
            )
            if prediction.masks is not None:
                entry['segmentation'] = _rle(prediction.masks[index])
            yield entry


def _rle(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools.mask import encode  # a dependency of mmdet, not of mmseg

    rle = encode(np.asfortranarray(mask, np.uint8))
    return dict(size=rle['size'], counts=rle['counts'].decode())
