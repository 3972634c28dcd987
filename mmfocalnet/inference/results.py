"""Writing predictions: COCO's result formats, label maps; every file whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfocalnet.compat.panopticapi import id2rgb
from mmfocalnet.files import replacing
from mmfocalnet.inference.pipeline import find_test_dataset
from mmfocalnet.inference.prediction import Prediction
from mmfocalnet.inference.predictor import Predictor

# Folder of the maps that a task's predictions are.
MAP_FOLDERS = {'panoptic': 'panoptic', 'semantic': 'pred'}


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Save (H, W) or RGB (H, W, 3) pixels as JPEG or PNG, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        # Unlike the default, without blurring thin coloured lines.
        Image.fromarray(pixels).save(part, quality=95, subsampling=0)


def save_json(content: Any, path: Path) -> None:
    """Save as JSON."""
    with replacing(path) as part:
        part.write_text(json.dumps(content))


class Results:
    """Collects predictions and writes them below a folder.

    Boxes and masks become ``predictions.json``, COCO's list of results; panoptic maps
    ``predictions.json``, COCO's panoptic format, and ``panoptic/NAME.png``; semantic maps
    ``pred/NAME.png`` with the index of the class, from 0. ``categories.json`` names the ids: those
    of the test dataset's annotations if they are there, else counted from 1; indices for maps.
    ``images.json`` lists what was predicted, with the ``id`` that predictions have as
    ``image_id`` and the ``name`` of its outputs.

    Attributes:
        ids_from: The annotation file whose ids are used, if any.
    """

    def __init__(self, out: Path, predictor: Predictor) -> None:
        self.out = out
        self.task = predictor.task
        self.ids, self.ids_from = _category_ids(predictor)
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
            origin: What says where it comes from: ``file_name`` and for videos ``frame``.
        """
        image_id = len(self.images) + 1
        height, width = prediction.image.shape[:2]
        self.images.append(dict(id=image_id, **origin, width=width, height=height, name=name))
        if self.task == 'semantic':
            # uint8 as in ADE20K's annotations; more classes than it counts need two bytes.
            kind = np.uint8 if len(self.ids) <= 256 else np.uint16
            save_picture(prediction.semantic.astype(kind), self._map(name))
        elif self.task == 'panoptic':
            save_picture(id2rgb(prediction.panoptic), self._map(name))
            self.entries.append(self._segments(prediction, image_id, f'{name}.png'))
        else:
            self.entries += self._boxes(prediction, dict(image_id=image_id, **origin))

    def close(self) -> list[Path]:
        """Write the JSON files; gives what was written, maps as their folder."""
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

    def _map(self, name: str) -> Path:
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


def _category_ids(predictor: Predictor) -> tuple[list[int], Path | None]:
    """An id per class, and the annotation file that has them."""
    count = len(predictor.classes)
    if predictor.task == 'semantic':
        return list(range(count)), None
    dataset = find_test_dataset(predictor.cfg)
    path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    try:
        categories = json.loads(path.read_text())['categories']
        by_name = {category['name']: category['id'] for category in categories}
        return [by_name[name] for name in predictor.classes], path
    except (OSError, ValueError, KeyError, TypeError):  # predicting needs no data set
        return list(range(1, count + 1)), None


def _rle(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools.mask import encode  # comes with mmdet

    rle = encode(np.asfortranarray(mask, np.uint8))
    return dict(size=rle['size'], counts=rle['counts'].decode())
