"""A trained model of mmdet or mmseg that takes pictures and gives arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer import BaseInferencer
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn

from mmfocalnet.checkpoints import cached_reads, check_has_weights, load_once
from mmfocalnet.config import read_model_config
from mmfocalnet.datasets.category_names import check_num_classes
from mmfocalnet.datasets.dataset_configs import dataset_class
from mmfocalnet.errors import ConfigError
from mmfocalnet.inference.colors import find_palette
from mmfocalnet.inference.pipeline import build_pipeline, find_test_dataset
from mmfocalnet.inference.prediction import Prediction, Segment
from mmfocalnet.models.weights import check_fits
from mmfocalnet.text import short_text

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
    cfg = read_model_config(str(config), cfg_options)
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise ConfigError(
            f'{config} has default_scope={cfg.get("default_scope")!r}; expected a config for '
            "mmdet or mmseg: set default_scope='mmdet' or 'mmseg' in it."
        )
    with cached_reads():
        path, content, _ = load_once(checkpoint)
        check_has_weights(path, content)
        return Predictor(cfg, str(path), device)


def load_model(cfg: Config, checkpoint: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build a config's model in its scope and load a checkpoint.

    Args:
        cfg: The config.
        checkpoint: As for `mmfocalnet.checkpoints.fetch`.

    Returns:
        The model on the CPU, in evaluation mode, and what else the checkpoint holds.

    Raises:
        CheckpointError: If the checkpoint is of another model, or its weights are not finite.
    """
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    with cached_reads():
        check_fits(model, checkpoint)
        content = load_checkpoint(model, checkpoint, map_location='cpu')
    return model.eval(), content


class Predictor(BaseInferencer):
    """MMEngine's inferencer for models of mmdet and mmseg, fed with pictures in memory.

    Unlike mmdet's and mmseg's own it never pads pictures of different sizes into one batch, which
    FocalNet's global context would see, reads checkpoints without unpickling what they hold, and
    gives a class the same colour everywhere.

    Args:
        cfg: Config of the model, in whose scope everything is built.
        weights: Its checkpoint, as for `mmfocalnet.checkpoints.fetch`.
        device: Such as ``'cuda:0'``. Defaults to ``'cpu'``.

    Attributes:
        model: The model, in evaluation mode.
        cfg: Its config.
        task: ``'boxes'``, ``'boxes and masks'``, ``'panoptic'`` or ``'semantic'``.
        classes: Names of the classes.
        palette: A colour per class, RGB, 0 to 255.
        things: How many of the classes, the first ones, have instances; None without panoptic maps.
    """

    visualize_kwargs: ClassVar[set[str]] = {'score_thr'}

    def __init__(self, cfg: Config, weights: str, device: str = 'cpu') -> None:
        scope = cfg.default_scope
        with DefaultScope.overwrite_default_scope(scope):
            super().__init__(cfg, weights, device, scope, show_progress=False)
        self.task = _task(self.model, scope)
        panoptic = self.task == 'panoptic'
        self.things = self.model.panoptic_fusion_head.num_things_classes if panoptic else None

    def predict(self, images: Sequence[np.ndarray], score_thr: float = 0.3) -> list[Prediction]:
        """Run the model on pictures, neighbours of one size as one batch.

        Args:
            images: BGR, uint8, (H, W, 3) each, as `read_image` returns them.
            score_thr: What the overlays show; the arrays hold every score. Defaults to 0.3.

        Returns:
            One prediction per picture, of its own size.

        Raises:
            ImageError: If one is no such array, or too narrow for the model's test pipeline.
        """
        if not images:
            return []
        found = self(list(images), batch_size=len(images), score_thr=score_thr)
        return found['predictions']

    def preprocess(
        self, inputs: Sequence[np.ndarray], batch_size: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Yield batches of the model's inputs, pictures of one size each."""
        for chunk in self._get_chunk_data(map(self.pipeline, inputs), batch_size):
            for _, batch in groupby(chunk, key=lambda data: data['inputs'].shape):
                yield self.collate_fn(list(batch))

    def forward(self, inputs: dict[str, Any]) -> list[BaseDataElement]:
        """Run the model on a batch; what it found is on the CPU then."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return [sample.cpu() for sample in super().forward(inputs)]

    def visualize(
        self,
        inputs: Sequence[np.ndarray],
        preds: Sequence[BaseDataElement],
        score_thr: float = 0.3,
    ) -> list[Prediction]:
        """Turn what the model found into what can be drawn: see `Prediction.overlay`."""
        return [
            self.read(sample, image, score_thr) for sample, image in zip(preds, inputs, strict=True)
        ]

    def postprocess(
        self,
        preds: Sequence[BaseDataElement],
        visualization: list[Prediction],
        return_datasample: bool = False,
    ) -> dict[str, list]:
        """Give predictions, or what the model itself returned."""
        return dict(predictions=preds if return_datasample else visualization)

    def read(self, sample: BaseDataElement, image: np.ndarray, score_thr: float) -> Prediction:
        """Take what the model found in a picture (H, W, 3) out of the form mmdet or mmseg give."""
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

    def _init_model(self, cfg: Config, weights: str, device: str) -> nn.Module:
        model, content = load_model(cfg, weights)
        meta = _dataset_meta(cfg, content.get('meta'))
        self.classes = list(meta['classes'])
        self.palette = find_palette(meta.get('palette'), len(self.classes))
        move_to(model, device)
        return model

    def _init_pipeline(self, cfg: Config) -> Callable[[np.ndarray], dict[str, Any]]:
        return build_pipeline(cfg)

    def _init_collate(self, cfg: Config) -> Callable[[list], dict[str, list]]:
        # Also where a config has another one for its tests: pictures in memory come as they are.
        return pseudo_collate

    def _init_visualizer(self, cfg: Config) -> None:
        """None: `draw` needs none."""

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


def _dataset_meta(cfg: Config, checkpoint_meta: Any) -> dict[str, Any]:
    """Classes and palette: the checkpoint knows what it was trained on, else the config."""
    dataset = find_test_dataset(cfg)
    meta = {
        **getattr(dataset_class(dataset), 'METAINFO', {}),
        **(dataset.get('metainfo') or {}),
        **_trained_on(checkpoint_meta),
    }
    if not meta.get('classes'):
        raise ConfigError(
            f'{cfg.filename} names no classes: add metainfo=dict(classes=(...)) to the dataset of '
            'its test_dataloader.'
        )
    check_num_classes(dict(dataset, metainfo=dict(classes=meta['classes'])), cfg.model)
    return meta


def _trained_on(checkpoint_meta: Any) -> dict[str, Any]:
    """Classes and palette of a checkpoint, which may hold anything in their place."""
    meta = checkpoint_meta if isinstance(checkpoint_meta, dict) else {}
    found = meta.get('dataset_meta')
    found = found if isinstance(found, dict) else {}
    # mmseg before 1.0 wrote CLASSES and PALETTE.
    found = {key.lower(): value for key, value in found.items() if isinstance(key, str)}
    classes = found.get('classes')
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        return {}
    # A name is drawn and printed.
    return dict(classes=[short_text(name)[:100] for name in classes], palette=found.get('palette'))


def _task(model: nn.Module, scope: str) -> str:
    if scope == 'mmseg':
        return 'semantic'
    fusion = getattr(model, 'panoptic_fusion_head', None)
    if fusion is not None:
        return 'panoptic' if fusion.test_cfg.get('panoptic_on', True) else 'boxes and masks'
    return 'boxes and masks' if model.with_mask else 'boxes'


def move_to(model: nn.Module, device: str) -> None:
    """Move a model to a device.

    Raises:
        ConfigError: If the device cannot be used here.
    """
    try:
        if torch.device(device).type == 'meta':
            raise RuntimeError('it computes shapes only')
        model.to(device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'The device {device!r} cannot be used ({reason}); expected one such as cpu or '
            'cuda:0: choose one that this machine and its torch have.'
        ) from error
