"""Held-out images with their truth and their predictions side by side, the best ones first."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.utils import track_iter_progress
from PIL import Image

from mmfocalnet.checkpoints import cached_reads, check_has_weights, load_once
from mmfocalnet.datasets.config_checks import check_data
from mmfocalnet.errors import CheckpointError, ConfigError, UserError
from mmfocalnet.inference import Prediction, read_image
from mmfocalnet.inference.predictor import INSTANCE_OFFSET, Predictor
from mmfocalnet.registry import type_name

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

_IGNORED = 255
# Pixels of a picture's longer side: text on smaller ones hides what they show.
_SMALLEST, _LARGEST = 320, 640
_GAP = 6


@dataclass
class Gallery:
    """Pictures of predictions, the best first, or the reason why there are none.

    Attributes:
        pictures: ``url``, ``name``, ``score``, ``meaning`` of it, and ``classes``, for each.
        caption: What the pictures show.
        classes: Colour per class.
        missing: Sentences on what is not there yet.
        skipped: Sentences on what could not be used.
    """

    pictures: list[dict[str, Any]] = field(default_factory=list)
    caption: str = ''
    classes: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def make_gallery(work_dir: Path, cfg: Config | None, images: int) -> Gallery:
    """Predict held-out images; whatever prevents that becomes a sentence of the gallery.

    Args:
        work_dir: Work dir of the training, with its checkpoints.
        cfg: Its config; None if it could not be read.
        images: Number of images, taken evenly from the whole set, which may be sorted.

    Returns:
        The gallery.
    """
    gallery = Gallery()
    try:
        if cfg is None:
            raise ConfigError('there is no config that could be read.')
        if type_name(cfg.get('model')) == 'FocalNetClassifier':
            gallery.missing.append(
                'No gallery: of a classifier, tools/test.py --show-dir draws the predictions.'
            )
            return gallery
        with cached_reads():
            _fill(gallery, work_dir, cfg, images)
    except UserError as error:
        gallery.skipped.append(f'No gallery: {error}')
    except Exception as error:  # the curves are worth having, whatever a model of a user raises
        gallery.skipped.append(f'No gallery: the model could not be built ({_named(error)}).')
    return gallery


def _named(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _fill(gallery: Gallery, work_dir: Path, cfg: Config, images: int) -> None:
    if not cfg.get('val_dataloader'):
        raise ConfigError('the config has no val_dataloader, and so no held-out images.')
    check_data(cfg, ('val',))
    checkpoint, gallery.skipped = _newest_checkpoint(work_dir)
    if checkpoint is None and gallery.skipped:
        return
    if checkpoint is None:
        gallery.missing.append(f'No gallery: {work_dir} has no checkpoint yet.')
        return
    # Prepared as for the validation of the training, not as for tests, which may be others.
    predictor = Predictor(Config(dict(cfg, test_dataloader=cfg.val_dataloader)), str(checkpoint))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    threshold = cfg.get('default_hooks', {}).get('visualization', {}).get('score_thr', 0.3)
    chosen = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int)
    for index in track_iter_progress(chosen.tolist(), file=sys.stdout):
        path = dataset.get_data_info(index)['img_path']
        try:
            gallery.pictures.append(_picture(predictor, dataset, index, threshold))
        except UserError as error:
            gallery.skipped.append(f'Left out of the gallery: {error}')
        except Exception as error:  # of whatever transforms the config has
            gallery.skipped.append(f'Left out of the gallery: {path} ({_named(error)}).')
    _finish(gallery, dataset, checkpoint, threshold)


def _finish(gallery: Gallery, dataset: Dataset, checkpoint: Path, threshold: float) -> None:
    gallery.pictures.sort(key=lambda picture: picture['score'], reverse=True)
    used = {name: colour for shown in gallery.pictures for name, colour in shown['classes'].items()}
    gallery.classes = {name: used[name] for name in dataset.metainfo['classes'] if name in used}
    gallery.caption = (
        f'{len(gallery.pictures)} of {len(dataset)} held-out images, predicted by '
        f'{checkpoint.name} on the CPU; left the truth, right the prediction. '
    )
    if gallery.pictures:
        gallery.caption += gallery.pictures[0]['meaning'].format(threshold=threshold)


def _newest_checkpoint(work_dir: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint of most iterations that loads safely, and what is wrong with newer ones."""
    damaged = []
    for path in sorted(Path(work_dir).glob('*.pth'), key=_age, reverse=True):
        try:
            check_has_weights(path, load_once(path).content)
        except CheckpointError as error:
            damaged.append(f'Not used for the gallery: {error}')
        else:
            return path, damaged
    return None, damaged


def _age(path: Path) -> tuple[int, float]:
    number = re.search(r'_(\d+)$', path.stem)
    return (int(number[1]) if number else -1, path.stat().st_mtime)


def _picture(
    predictor: Predictor, dataset: Dataset, index: int, threshold: float
) -> dict[str, Any]:
    """Predict one image: its picture as a data URL, its score and what that means."""
    path = dataset.get_data_info(index)['img_path']
    # First, since it names what is wrong with an image.
    image = read_image(path)
    [sample] = predictor.forward(predictor.collate_fn([dataset[index]]))
    truth, prediction = _labels(sample, threshold)
    if truth is None:
        raise ConfigError('the pipeline of val_dataloader loads no annotations to compare with.')
    blank = Prediction('', image, predictor.classes, predictor.palette, threshold)
    halves = [_drawn(_as_prediction(labels, blank)) for labels in (truth, prediction)]
    gap = np.full_like(halves[0][:, :_GAP], 255)
    boxes, panoptic = isinstance(truth, BaseDataElement), 'pred_panoptic_seg' in sample
    classes, palette = predictor.classes, predictor.palette
    return {
        'url': _data_url(np.concatenate((halves[0], gap, halves[1]), axis=1)),
        'name': Path(path).name,
        'score': box_quality(truth, prediction)
        if boxes
        else mean_iou(truth, prediction, len(classes)),
        'meaning': (_BOXES if boxes else _LABELS) + (_PANOPTIC if panoptic else ''),
        'classes': {
            classes[label]: '#{:02x}{:02x}{:02x}'.format(*palette[label])
            for label in sorted(_present(truth) | _present(prediction))
            if label < len(classes)
        },
    }


def _labels(
    sample: BaseDataElement, threshold: float
) -> tuple[BaseDataElement | Tensor | None, BaseDataElement | Tensor]:
    """Truth and prediction of a sample: instances, or labels (1, H, W) of pixels."""
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
    return set(values.unique().tolist()) - {_IGNORED}


def _as_prediction(labels: BaseDataElement | Tensor, blank: Prediction) -> Prediction:
    """Labels, or instances with or without scores and masks, as what can be drawn."""
    if not isinstance(labels, BaseDataElement):
        # What is coloured itself would change the colours of the classes, all over the picture.
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


def _drawn(prediction: Prediction) -> np.ndarray:
    """RGB (H, W, 3), of a size that is good to look at."""
    overlay = prediction.enlarged(_SMALLEST).overlay
    too_large = max(overlay.shape) > _LARGEST
    return mmcv.imrescale(overlay, (_LARGEST, _LARGEST)) if too_large else overlay


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format='JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


_LABELS = 'The score is the mean IoU of the classes in the truth or in the prediction.'
_PANOPTIC = ' Instances of one class are not told apart, neither here nor in the score.'
_BOXES = (
    'Predictions of {threshold} or more are drawn and counted. The score of an image is twice '
    'the sum of the IoUs of matched boxes (of one class, IoU 0.5 or more) over the number of '
    'true and predicted boxes: 1 if all match exactly.'
)


def mean_iou(truth: Tensor, prediction: Tensor, num_classes: int) -> float:
    """Mean IoU of the classes in one image's truth or prediction.

    Args:
        truth: Labels (1, H, W); 255 is ignored.
        prediction: Labels (1, H, W); `num_classes` and above are no class.
        num_classes: Number of classes.

    Returns:
        The mean, 0 to 1; 1 for an image without labels.
    """
    valid = truth != _IGNORED
    truth, prediction = truth[valid].long(), prediction[valid].long()
    classes = [
        label for label in torch.cat((truth, prediction)).unique().tolist() if label < num_classes
    ]
    overlaps = [
        ((truth == label) & (prediction == label)).sum()
        / ((truth == label) | (prediction == label)).sum()
        for label in classes
    ]
    return float(torch.stack(overlaps).mean()) if overlaps else 1.0


def box_quality(truth: BaseDataElement, prediction: BaseDataElement) -> float:
    """Panoptic quality with boxes in place of masks, classes taken together, of one image.

    Predictions are matched in the order of their scores, each to the true box of its class
    that it overlaps most and that is still free.

    Args:
        truth: ``bboxes`` (N, 4) as x1, y1, x2, y2 in pixels and ``labels`` (N).
        prediction: ``bboxes`` (M, 4), ``labels`` (M) and ``scores`` (M).

    Returns:
        The quality, 0 to 1; 1 if there is nothing to find and nothing was found.
    """
    from mmdet.structures.bbox import bbox_overlaps, get_box_tensor

    if not len(truth) + len(prediction):
        return 1.0
    overlaps = bbox_overlaps(get_box_tensor(prediction.bboxes), get_box_tensor(truth.bboxes))
    overlaps = overlaps * (prediction.labels[:, None] == truth.labels[None])
    total = 0.0
    for row in prediction.scores.argsort(descending=True) if len(truth) else ():
        best = overlaps[row].argmax()
        if overlaps[row, best] >= 0.5:
            total += float(overlaps[row, best])
            overlaps[:, best] = 0
    return 2 * total / (len(truth) + len(prediction))
