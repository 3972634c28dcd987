"""A trained model of mmdet or mmseg that takes pictures and gives arrays."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn

from mmfocalnet.checkpoints import fetch
from mmfocalnet.datasets.checks import check_classes
from mmfocalnet.errors import ConfigError
from mmfocalnet.inference.images import ImageError
from mmfocalnet.inference.prediction import Prediction, Segment
from mmfocalnet.launch import check_fits, check_start, load_config

# How mmdet packs class and instance into one number.
INSTANCE_OFFSET = 1000


def load_predictor(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    device: str = 'cpu',
    cfg_options: dict[str, Any] | None = None,
) -> Predictor:
    """Load a trained model.

    Args:
        config: Config file of an mmdet or mmseg model; like every such file it is code that runs.
        checkpoint: Checkpoint that was trained with it, path or http(s) URL; it is read without
            running anything that it may hold.
        device: Such as ``'cuda:0'``. Defaults to ``'cpu'``.
        cfg_options: Settings of the config to override, by dotted name. Defaults to none.

    Returns:
        The model, ready to predict.

    Raises:
        ConfigError: If the config is missing or cannot be read, names no classes or another
            number than the model has, or the device is not there.
        CheckpointError: If the checkpoint is missing, damaged, unsafe or of another model.
    """
    cfg = load_config(
        Namespace(
            config=str(config),
            cfg_options=cfg_options,
            work_dir=None,
            launcher='none',
            local_rank=0,
        )
    )
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise ConfigError(
            f'{config} has default_scope={cfg.get("default_scope")!r}; expected a config for '
            "mmdet or mmseg: set default_scope='mmdet' or 'mmseg' in it."
        )
    cfg.load_from = str(checkpoint)
    check_start(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model, content = load_model(cfg, str(checkpoint))
        meta = _dataset_meta(cfg, content.get('meta') or {})
        _move(model, device)
        return Predictor(model, cfg, meta)


def load_model(cfg: Config, checkpoint: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build a config's model in its scope and load a checkpoint that `check_start` has seen.

    Args:
        cfg: The config.
        checkpoint: Path or URL.

    Returns:
        The model on the CPU, in evaluation mode, and what else the checkpoint holds.

    Raises:
        CheckpointError: If the checkpoint is of another model.
    """
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    check_fits(model, checkpoint)
    content = load_checkpoint(model, str(fetch(checkpoint)), map_location='cpu')
    return model.eval(), content


class Predictor:
    """A model of mmdet or mmseg with what is needed to feed it pictures.

    Attributes:
        model: The model, in evaluation mode.
        cfg: Its config.
        task: ``'boxes'``, ``'boxes and masks'``, ``'panoptic'`` or ``'semantic'``.
        classes: Names of the classes.
        palette: A colour per class, RGB, 0 to 255.
        things: How many of the classes, the first ones, have instances; None without panoptic maps.
    """

    def __init__(self, model: nn.Module, cfg: Config, meta: dict[str, Any]) -> None:
        self.model = model
        self.cfg = cfg
        self.task = _task(model, cfg.default_scope)
        self.classes = list(meta['classes'])
        self.palette = find_palette(meta.get('palette'), len(self.classes))
        panoptic = self.task == 'panoptic'
        self.things = model.panoptic_fusion_head.num_things_classes if panoptic else None
        # Built in the model's scope, in which LoadImageFromNDArray is mmdet's or mmseg's.
        self._pipeline = Compose(_pipeline(cfg))

    def predict(self, images: Sequence[np.ndarray], score_thr: float = 0.3) -> list[Prediction]:
        """Run the model on pictures, as one batch where they are of one size.

        Pictures of different sizes would need padding, which FocalNet's global context sees;
        they go one after the other, so that batching never changes a prediction.

        Args:
            images: BGR, uint8, (H, W, 3) each, as `read_image` returns them.
            score_thr: What the overlays show; the arrays hold every score. Defaults to 0.3.

        Returns:
            One prediction per picture, of its own size.

        Raises:
            ImageError: If one is no such array, or too narrow for the model's test pipeline.
        """
        groups = defaultdict(list)
        for index, image in enumerate(images):
            data = self._prepare(image)
            groups[data['inputs'].shape].append((index, data))
        predictions: dict[int, Prediction] = {}
        for group in groups.values():
            indices, batch = zip(*group, strict=True)
            for index, sample in zip(indices, self._run(batch), strict=True):
                predictions[index] = self._read(sample, images[index], score_thr)
        return [predictions[index] for index in range(len(images))]

    def _prepare(self, image: np.ndarray) -> dict[str, Any]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f'A picture has shape {image.shape} and type {image.dtype}; expected (H, W, 3) '
                'and uint8, BGR: read it with mmfocalnet.inference.read_image.'
            )
        try:
            return self._pipeline(dict(img=image, img_id=0))
        except Exception as error:  # OpenCV's own type, for sides that scale to no pixel
            raise ImageError(
                f'A picture of {image.shape[1]}x{image.shape[0]} pixels does not pass the test '
                f'pipeline of {self.cfg.filename}; expected one that is not so narrow: cut it.'
            ) from error

    @torch.inference_mode()
    def _run(self, batch: Sequence[dict[str, Any]]) -> list[BaseDataElement]:
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            samples = self.model.test_step(
                {key: [data[key] for data in batch] for key in ('inputs', 'data_samples')}
            )
        return [sample.cpu() for sample in samples]

    def _read(self, sample: BaseDataElement, image: np.ndarray, score_thr: float) -> Prediction:
        make = partial(Prediction, self.task, image, self.classes, self.palette, score_thr)
        if self.task == 'semantic':
            return make(semantic=sample.pred_sem_seg.data[0].numpy())
        if self.task == 'panoptic':
            return make(**self._read_panoptic(sample.pred_panoptic_seg.sem_seg[0].numpy()))
        found = sample.pred_instances
        best_first = found.scores.argsort(descending=True, stable=True)
        return make(
            boxes=found.bboxes[best_first].numpy(),
            labels=found.labels[best_first].numpy(),
            scores=found.scores[best_first].numpy(),
            masks=found.masks[best_first].numpy().astype(bool) if 'masks' in found else None,
        )

    def _read_panoptic(self, packed: np.ndarray) -> dict[str, Any]:
        values, places = np.unique(packed, return_inverse=True)
        ids = np.zeros(len(values), np.int32)
        segments = []
        for index, value in enumerate(values):
            label = int(value) % INSTANCE_OFFSET
            if label < len(self.classes):  # the next number stands for no segment
                ids[index] = len(segments) + 1
                area = int((packed == value).sum())
                segments.append(Segment(int(ids[index]), label, area, label < self.things))
        return dict(panoptic=ids[places].reshape(packed.shape), segments=segments)


def find_test_dataset(cfg: Config) -> dict[str, Any]:
    """The dataset of a config's tests, without what wraps it."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


def _pipeline(cfg: Config) -> list[dict[str, Any]]:
    """The test pipeline, for a picture in memory and without labels."""
    _, *steps = find_test_dataset(cfg).pipeline
    return [dict(type='LoadImageFromNDArray')] + [
        step for step in steps if not step['type'].split('.')[-1].startswith('Load')
    ]


def _dataset_meta(cfg: Config, checkpoint_meta: dict[str, Any]) -> dict[str, Any]:
    """Classes and palette: the checkpoint knows what it was trained on, else the config."""
    dataset = find_test_dataset(cfg)
    trained_on = checkpoint_meta.get('dataset_meta') or {}
    meta = {
        **getattr(DATASETS.get(dataset['type']), 'METAINFO', {}),
        **(dataset.get('metainfo') or {}),
        **{key.lower(): value for key, value in trained_on.items()},
    }
    if not meta.get('classes'):
        raise ConfigError(
            f'{cfg.filename} names no classes: add metainfo=dict(classes=(...)) to the dataset of '
            'its test_dataloader.'
        )
    check_classes(dict(dataset, metainfo=dict(classes=meta['classes'])), cfg.model)
    return meta


def find_palette(colors: Any, count: int) -> list[tuple[int, int, int]]:
    """The dataset's colours, or others where it has none for each class."""
    if isinstance(colors, (list, tuple)) and len(colors) >= count:
        return [tuple(map(int, color)) for color in colors]
    table = (np.array(colormaps['tab20'].colors) * 255).round().astype(int).tolist()
    return [tuple(table[index % len(table)]) for index in range(count)]


def _task(model: nn.Module, scope: str) -> str:
    if scope == 'mmseg':
        return 'semantic'
    fusion = getattr(model, 'panoptic_fusion_head', None)
    if fusion is not None:
        return 'panoptic' if fusion.test_cfg.get('panoptic_on', True) else 'boxes and masks'
    return 'boxes and masks' if model.with_mask else 'boxes'


def _move(model: nn.Module, device: str) -> None:
    try:
        model.to(device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'The device {device!r} cannot be used ({reason}); expected one such as cpu or '
            'cuda:0: choose one that this machine and its torch have.'
        ) from error
