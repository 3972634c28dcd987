"""Run a trained model of mmdet or mmseg on images; predictions are NumPy arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
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
from mmfocalnet.compat.log_filters import hide_info, import_datasets
from mmfocalnet.config import read_model_config
from mmfocalnet.datasets.category_names import check_num_classes
from mmfocalnet.datasets.dataset_configs import dataset_class
from mmfocalnet.deployment import SUFFIXES
from mmfocalnet.errors import ConfigError
from mmfocalnet.inference.colors import find_palette
from mmfocalnet.inference.exported import ExportedPredictor
from mmfocalnet.inference.pipeline import build_pipeline, find_test_dataset
from mmfocalnet.inference.prediction import Prediction, Segment
from mmfocalnet.models.pretrained import drop_pretrained
from mmfocalnet.models.weight_checks import check_fits, check_position_encoding
from mmfocalnet.released import DETECTORS, RELEASED, configs_folder
from mmfocalnet.text import short_text

# mmdet encodes class and instance in one integer.
INSTANCE_OFFSET = 1000


def load_predictor(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    device: str = 'cpu',
    cfg_options: dict[str, Any] | None = None,
) -> AnyPredictor:
    """Load a trained model.

    Args:
        config: Config file of an mmdet or mmseg model, which is executed, or without a checkpoint
            the name of a released model (`mmfocalnet.released`), such as ``'dino-focalnet-l'``, or
            a file that tools/export.py wrote, such as ``'model.onnx'``, which is not executed.
        checkpoint: Checkpoint trained with it, path or http(s) URL. No code in it is executed.
            Defaults to None: the released weights.
        device: Such as ``'cuda:0'``. Defaults to ``'cpu'``.
        cfg_options: Overrides of config values, by dotted key. Defaults to none.

    Returns:
        An `ExportedPredictor` for an exported file, otherwise a `Predictor`.

    Raises:
        ConfigError: If the config is missing or invalid, the number of classes is not that of the
            model, or the device is unavailable; for an exported file, if there is a checkpoint or
            overrides.
        CheckpointError: If the checkpoint or exported file is missing, damaged, unsafe or of
            another model.
    """
    if str(config).endswith(tuple(SUFFIXES.values())):
        if checkpoint is not None or cfg_options:
            raise ConfigError(
                f'{config} is an exported model, which has no checkpoint and no config to override.'
                ' Specify it alone.'
            )
        return ExportedPredictor(config, device)
    if str(checkpoint).endswith(tuple(SUFFIXES.values())):
        raise ConfigError(
            f'{checkpoint} is an exported model, which needs no config. Specify it alone.'
        )
    if checkpoint is None:
        config, checkpoint = find_released(str(config))
    cfg = _read_config(config, cfg_options)
    with cached_reads():
        path, content, _ = load_once(checkpoint)
        check_has_weights(path, content)
        check_position_encoding(cfg.model, content, str(checkpoint))
        return Predictor(cfg, str(path), device)


def random_predictor(
    config: str | os.PathLike, cfg_options: dict[str, Any] | None = None
) -> Predictor:
    """Build a model with random weights, on the CPU.

    Args:
        config: Config file of an mmdet or mmseg model, which is executed.
        cfg_options: Overrides of config values, by dotted key. Defaults to none.

    Raises:
        ConfigError: As `load_predictor`.
    """
    cfg = _read_config(config, cfg_options)
    drop_pretrained(cfg.model)
    return Predictor(cfg, None)


def _read_config(config: str | os.PathLike, cfg_options: dict[str, Any] | None) -> Config:
    cfg = read_model_config(str(config), cfg_options)
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise ConfigError(
            f'{config} has default_scope={cfg.get("default_scope")!r}, expected mmdet or mmseg: '
            'specify the config of a detector or a segmentation model, or set default_scope.'
        )
    import_datasets(cfg.default_scope)
    return cfg


def find_released(name: str) -> tuple[Path, str]:
    """Find the config of a released detector.

    Args:
        name: A name in `mmfocalnet.released.RELEASED`.

    Returns:
        The config, and the URL of the weights.

    Raises:
        ConfigError: If there is no such detector.
    """
    if name not in DETECTORS:
        is_config = Path(name).suffix in ('.py', '.yaml', '.yml', '.json')
        fault = 'has no checkpoint' if is_config else 'is not a released detector'
        raise ConfigError(
            f'{short_text(repr(name))} {fault}. Specify a config and a checkpoint, an exported '
            f'file (.onnx or .xml), or one of {", ".join(DETECTORS)}.'
        )
    return configs_folder() / str(RELEASED[name].config), RELEASED[name].url


class Predictor(BaseInferencer):
    """MMEngine inferencer for models of mmdet and mmseg, with images in memory as inputs.

    Unlike the inferencers of mmdet and mmseg it never pads images of different sizes into one
    batch, which would change FocalNet's global context. It reads checkpoints without unpickling
    them and gives each class a fixed color.

    Args:
        cfg: Config of the model; everything is built in its scope.
        weights: Checkpoint, as for `mmfocalnet.checkpoints.fetch`; None for random weights.
        device: Such as ``'cuda:0'``. Defaults to ``'cpu'``.

    Attributes:
        model: The model, in evaluation mode.
        cfg: Its config.
        task: ``'boxes'``, ``'boxes and masks'``, ``'panoptic'`` or ``'semantic'``.
        classes: Names of the classes.
        palette: A color per class, RGB, 0 to 255.
        things: Number of classes that have instances, which come first; None without panoptic maps.
    """

    postprocess_kwargs: ClassVar[set[str]] = {'score_thr'}

    def __init__(self, cfg: Config, weights: str | None, device: str = 'cpu') -> None:
        scope = cfg.default_scope
        with DefaultScope.overwrite_default_scope(scope):
            super().__init__(cfg, weights, device, scope, show_progress=False)
        self.task = _task(self.model, scope)
        panoptic = self.task == 'panoptic'
        self.things = self.model.panoptic_fusion_head.num_things_classes if panoptic else None

    def category_ids(self) -> tuple[list[int], Path | None]:
        """An id per class, and the annotation file of the test dataset that contains them.

        Without the file, ids start at 1; indices of semantic classes at 0.
        """
        if self.task == 'semantic':
            return list(range(len(self.classes))), None
        dataset = find_test_dataset(self.cfg)
        path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
        try:
            categories = json.loads(path.read_text())['categories']
            by_name = {category['name']: category['id'] for category in categories}
            return [by_name[name] for name in self.classes], path
        except (OSError, ValueError, KeyError, TypeError):  # predicting does not need the dataset
            return list(range(1, len(self.classes) + 1)), None

    def predict(self, images: Sequence[np.ndarray], score_thr: float = 0.3) -> list[Prediction]:
        """Predict images. Consecutive ones of one size form a batch.

        Args:
            images: BGR, uint8, (H, W, 3) each, as `read_image` returns them.
            score_thr: Minimum score in the overlays; the arrays contain all scores. Defaults to
                0.3.

        Returns:
            One prediction per image, of its size.

        Raises:
            ImageError: If an image is not such an array, or too narrow for the test pipeline.
        """
        if not images:
            return []
        return self(list(images), batch_size=len(images), score_thr=score_thr)['predictions']

    def preprocess(
        self, inputs: Sequence[np.ndarray], batch_size: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Yield batches of inputs of one size, with the ``images`` that they are made of."""
        for images in self._get_chunk_data(inputs, batch_size):
            pairs = [(image, self.pipeline(image)) for image in images]
            for _, batch in groupby(pairs, key=lambda pair: pair[1]['inputs'].shape):
                originals, data = zip(*batch, strict=True)
                yield dict(self.collate_fn(data), images=originals)

    def forward(self, inputs: dict[str, Any]) -> list[tuple[np.ndarray, BaseDataElement]]:
        """Run the model on a batch of `preprocess`; return each image with its data sample."""
        images = inputs.pop('images')
        return list(zip(images, self.test_step(inputs), strict=True))

    @torch.no_grad()
    def test_step(self, inputs: dict[str, Any]) -> list[BaseDataElement]:
        """Run the model on a batch of a data loader; return its data samples on the CPU."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return [sample.cpu() for sample in self.model.test_step(inputs)]

    def visualize(self, *args: Any, **kwargs: Any) -> None:
        """Draw nothing: required by `BaseInferencer`. `Prediction.overlay` draws on demand."""

    def postprocess(
        self,
        preds: Sequence[tuple[np.ndarray, BaseDataElement]],
        visualization: None,
        return_datasample: bool = False,
        score_thr: float = 0.3,
    ) -> dict[str, list]:
        """Return the predictions, or the data samples of the model, under ``predictions``."""
        if return_datasample:
            return dict(predictions=[sample for _, sample in preds])
        return dict(
            predictions=[self._to_prediction(sample, image, score_thr) for image, sample in preds]
        )

    def _to_prediction(
        self, sample: BaseDataElement, image: np.ndarray, score_thr: float
    ) -> Prediction:
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

    def _init_model(self, cfg: Config, weights: str | None, device: str) -> nn.Module:
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        content = {}
        if weights is None:
            with hide_info():
                model.init_weights()
        else:
            with cached_reads():
                check_fits(model, weights)
                content = load_checkpoint(model, weights, map_location='cpu')
        model.eval()
        meta = _dataset_meta(cfg, content.get('meta'))
        self.classes = list(meta['classes'])
        self.palette = find_palette(meta.get('palette'), len(self.classes))
        move_to(model, device)
        return model

    def _init_pipeline(self, cfg: Config) -> Callable[[np.ndarray], dict[str, Any]]:
        return build_pipeline(cfg)

    def _init_collate(self, cfg: Config) -> Callable[[list], dict[str, list]]:
        # Not that of the config, which may expect other inputs than images in memory.
        return pseudo_collate

    def _init_visualizer(self, cfg: Config) -> None:
        """Create no visualizer, because `draw` needs none."""

    def _read_panoptic(self, packed: np.ndarray) -> dict[str, Any]:
        values, indices = np.unique(packed, return_inverse=True)
        ids = np.zeros(len(values), np.int32)
        segments = []
        for index, value in enumerate(values):
            label = int(value) % INSTANCE_OFFSET
            if label < len(self.classes):  # the next integer means no segment
                ids[index] = len(segments) + 1
                area = int((packed == value).sum())
                segments.append(Segment(int(ids[index]), label, area, label < self.things))
        return dict(panoptic=ids[indices].reshape(packed.shape), segments=segments)


AnyPredictor = Predictor | ExportedPredictor


def _dataset_meta(cfg: Config, checkpoint_meta: Any) -> dict[str, Any]:
    """Classes and palette of the checkpoint, else of the test dataset."""
    dataset = find_test_dataset(cfg)
    meta = {
        **getattr(dataset_class(dataset), 'METAINFO', {}),
        **(dataset.get('metainfo') or {}),
        **_checkpoint_meta(checkpoint_meta),
    }
    if not meta.get('classes'):
        raise ConfigError(
            f'{cfg.filename} has no classes. Add metainfo=dict(classes=(...)) to the dataset of '
            'test_dataloader.'
        )
    check_num_classes(dict(dataset, metainfo=dict(classes=meta['classes'])), cfg.model)
    return meta


def _checkpoint_meta(meta: Any) -> dict[str, Any]:
    """Classes and palette of a checkpoint; empty if its metadata are malformed."""
    found = meta.get('dataset_meta') if isinstance(meta, dict) else None
    found = found if isinstance(found, dict) else {}
    # mmseg before 1.0 wrote CLASSES and PALETTE.
    found = {key.lower(): value for key, value in found.items() if isinstance(key, str)}
    classes = found.get('classes')
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        return {}
    # Names are drawn and printed.
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
        ConfigError: If the device is unavailable.
    """
    try:
        if torch.device(device).type == 'meta':
            raise RuntimeError('it computes shapes only')
        model.to(device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'The device {device!r} is unavailable ({reason}). Specify another, such as cpu.'
        ) from error
