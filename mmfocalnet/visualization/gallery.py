"""Held-out images with ground truth and prediction side by side, sorted by score."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image
from rich.progress import track

from mmfocalnet.checkpoints import cached_reads, check_has_weights, load_once
from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.datasets.data_checks import check_data
from mmfocalnet.datasets.label_maps import IGNORED
from mmfocalnet.errors import CheckpointError, ConfigError, UserError
from mmfocalnet.inference import Prediction, read_image
from mmfocalnet.inference.predictor import INSTANCE_OFFSET, Predictor
from mmfocalnet.registry import type_name
from mmfocalnet.visualization.image_scores import box_quality, mean_iou

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

# Longer side in pixels. On smaller images, text hides their content.
_MIN_SIDE, _MAX_SIDE = 320, 640
_GAP = 6

_LABELS_NOTE = 'The score is the mean IoU of the classes in the ground truth or the prediction.'
_PANOPTIC_NOTE = ' Instances of one class are not distinguished, neither here nor in the score.'
_BOXES_NOTE = (
    'Predictions with a score of at least {threshold} are drawn and counted. The score of an image '
    'is twice the sum of the IoUs of matched boxes (same class, IoU of at least 0.5) divided by '
    'the number of ground-truth and predicted boxes: 1 if all match exactly.'
)


class GalleryImage(NamedTuple):
    """Truth and prediction of one image.

    Attributes:
        url: A JPEG as a data URL: left the ground truth, right the prediction.
        name: Name of the image file.
        score: Score of the prediction, 0 to 1.
        note: What the score is.
        classes: Colour by name of each class in the image.
    """

    url: str
    name: str
    score: float
    note: str
    classes: dict[str, str]


@dataclass
class Gallery:
    """Predictions of held-out images, best first, or the reasons why there are none.

    Attributes:
        images: The images.
        caption: What they show.
        classes: Colour by name of each class in them.
        missing: Messages about what is not available yet.
        skipped: Messages about what could not be used.
    """

    images: list[GalleryImage] = field(default_factory=list)
    caption: str = ''
    classes: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def make_gallery(work_dir: Path, cfg: Config | None, count: int) -> Gallery:
    """Predict held-out images with the newest checkpoint; errors become messages of the gallery.

    Args:
        work_dir: Work dir of the training run, with its checkpoints.
        cfg: Its config; None if it could not be read.
        count: Number of images, evenly spaced in the dataset, which may be sorted.
    """
    gallery = Gallery()
    try:
        if cfg is None:
            raise ConfigError('the config could not be read.')
        if type_name(cfg.get('model')) == 'FocalNetClassifier':
            gallery.missing.append(
                'No gallery: for classifiers, draw predictions with tools/test.py --show-dir.'
            )
            return gallery
        import_datasets(cfg.get('default_scope'))
        with cached_reads():
            _fill(gallery, work_dir, cfg, count)
    except UserError as error:
        gallery.skipped.append(f'No gallery: {error}')
    except Exception as error:  # whatever a custom model raises: the curves are still useful
        gallery.skipped.append(f'No gallery: the prediction failed ({_describe(error)}).')
    return gallery


def _describe(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _fill(gallery: Gallery, work_dir: Path, cfg: Config, count: int) -> None:
    if not cfg.get('val_dataloader'):
        raise ConfigError('the config has no val_dataloader, and so no held-out images.')
    check_data(cfg, ('val',))
    checkpoint, gallery.skipped = _newest_checkpoint(work_dir)
    if checkpoint is None:
        if not gallery.skipped:
            gallery.missing.append(f'No gallery: {work_dir} has no checkpoint yet.')
        return
    # The pipeline of the validation, as the test pipeline may differ.
    predictor = Predictor(Config(dict(cfg, test_dataloader=cfg.val_dataloader)), str(checkpoint))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    threshold = cfg.get('default_hooks', {}).get('visualization', {}).get('score_thr', 0.3)
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    for index in track(chosen.tolist(), 'Predicting', disable=not sys.stdout.isatty()):
        path = dataset.get_data_info(index)['img_path']
        try:
            gallery.images.append(_predict(predictor, dataset, index, threshold))
        except UserError as error:
            gallery.skipped.append(f'Left out of the gallery: {error}')
        except Exception as error:  # whatever the config's transforms raise
            gallery.skipped.append(f'Left out of the gallery: {path} ({_describe(error)}).')
    gallery.images.sort(key=lambda image: image.score, reverse=True)
    used = {name: colour for image in gallery.images for name, colour in image.classes.items()}
    gallery.classes = {name: used[name] for name in dataset.metainfo['classes'] if name in used}
    gallery.caption = (
        f'{len(gallery.images)} of {len(dataset)} held-out images, predicted by '
        f'{checkpoint.name} on the CPU. Left: ground truth, right: prediction. '
    )
    if gallery.images:
        gallery.caption += gallery.images[0].note


def _newest_checkpoint(work_dir: Path) -> tuple[Path | None, list[str]]:
    """The valid checkpoint with the highest iteration, and messages about invalid newer ones."""

    def age(path: Path) -> tuple[int, float]:
        number = re.search(r'_(\d+)$', path.stem)
        return (int(number[1]) if number else -1, path.stat().st_mtime)

    skipped = []
    for path in sorted(Path(work_dir).glob('*.pth'), key=age, reverse=True):
        try:
            check_has_weights(path, load_once(path).content)
        except CheckpointError as error:
            skipped.append(f'Not used for the gallery: {error}')
        else:
            return path, skipped
    return None, skipped


def _predict(predictor: Predictor, dataset: Dataset, index: int, threshold: float) -> GalleryImage:
    path = dataset.get_data_info(index)['img_path']
    image = read_image(path)  # first, because it raises with the cause if the file is damaged
    [sample] = predictor.test_step(predictor.collate_fn([dataset[index]]))
    truth, prediction = _labels(sample, threshold)
    if truth is None:
        raise ConfigError('the pipeline of val_dataloader loads no annotations to compare with.')
    classes, palette = predictor.classes, predictor.palette
    if isinstance(truth, BaseDataElement):
        score, note = box_quality(truth, prediction), _BOXES_NOTE.format(threshold=threshold)
    else:
        score = mean_iou(truth, prediction, len(classes))
        note = _LABELS_NOTE + (_PANOPTIC_NOTE if 'pred_panoptic_seg' in sample else '')
    blank = Prediction('', image, classes, palette, threshold)
    left, right = (_draw(_as_prediction(labels, blank)) for labels in (truth, prediction))
    gap = np.full_like(left[:, :_GAP], 255)
    colours = {
        classes[label]: '#{:02x}{:02x}{:02x}'.format(*palette[label])
        for label in sorted(_present(truth) | _present(prediction))
        if label < len(classes)
    }
    url = _data_url(np.concatenate((left, gap, right), axis=1))
    return GalleryImage(url, Path(path).name, score, note, colours)


def _labels(
    sample: BaseDataElement, threshold: float
) -> tuple[BaseDataElement | Tensor | None, BaseDataElement | Tensor]:
    """Truth and prediction of a sample: instances, or label maps (1, H, W)."""
    if 'pred_panoptic_seg' in sample:
        prediction = sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET
        return sample.gt_sem_seg.sem_seg if 'gt_sem_seg' in sample else None, prediction
    if 'pred_sem_seg' in sample:
        truth = sample.gt_sem_seg.data if 'gt_sem_seg' in sample else None
        return truth, sample.pred_sem_seg.data
    found = sample.pred_instances
    return sample.get('gt_instances'), found[found.scores >= threshold]


def _present(labels: BaseDataElement | Tensor) -> set[int]:
    values = labels.labels if isinstance(labels, BaseDataElement) else labels
    return set(values.unique().tolist()) - {IGNORED}


def _as_prediction(labels: BaseDataElement | Tensor, blank: Prediction) -> Prediction:
    """Convert a label map, or instances with or without scores and masks, for drawing."""
    if not isinstance(labels, BaseDataElement):
        # A coloured image would change the colours of the classes drawn over it.
        grey = mmcv.gray2bgr(mmcv.bgr2gray(blank.image))
        return replace(blank, task='semantic', image=grey, semantic=labels[0].numpy())
    from mmdet.structures.bbox import get_box_tensor

    masks = labels.get('masks')
    if masks is not None:
        masks = masks.numpy() if isinstance(masks, torch.Tensor) else masks.to_ndarray()
    return replace(
        blank,
        task='boxes' if masks is None else 'boxes and masks',
        boxes=get_box_tensor(labels.bboxes).numpy(),
        labels=labels.labels.numpy(),
        scores=labels.scores.numpy() if 'scores' in labels else None,
        masks=None if masks is None else masks.astype(bool),
    )


def _draw(prediction: Prediction) -> np.ndarray:
    """RGB (H, W, 3), resized for display."""
    overlay = prediction.enlarged(_MIN_SIDE).overlay
    too_large = max(overlay.shape) > _MAX_SIDE
    return mmcv.imrescale(overlay, (_MAX_SIDE, _MAX_SIDE)) if too_large else overlay


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format='JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
