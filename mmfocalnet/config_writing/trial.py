"""One loss, one backward pass and one prediction of a model, on random images."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmfocalnet.config import find_dicts
from mmfocalnet.registry import type_name

# Corners of the objects.
_BOXES = [[8.0, 8.0, 72.0, 56.0], [40.0, 48.0, 120.0, 120.0], [90.0, 4.0, 110.0, 30.0]]


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config with random weights, from a copy of its config."""
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in model:
        model.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)
    for part in find_dicts(model):
        if type_name(part.get('init_cfg')) == 'Pretrained':
            part['init_cfg'] = None
        if isinstance(part.get('pretrained'), str):
            part['pretrained'] = None
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(model)
        model.init_weights()
    return model


def try_model(cfg: Config, model: nn.Module) -> None:
    """Compute a loss with its gradients and a prediction for two random images.

    Args:
        cfg: The config.
        model: The model that it builds.

    Raises:
        Exception: Whatever the model raises.
        ArithmeticError: If the loss is NaN or infinite.
    """
    torch.manual_seed(0)
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
    with scope:
        MessageHub.get_current_instance().update_info('iter', 0)  # some losses warm up
        model.train()
        data = model.data_preprocessor(_batch(cfg), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        if not torch.isfinite(loss):
            raise ArithmeticError(f'the loss is {loss.item()}')
        loss.backward()
        model.eval()
        with torch.no_grad():
            model(**model.data_preprocessor(_batch(cfg), False), mode='predict')


def _batch(cfg: Config) -> dict[str, Any]:
    # Two-stage DETRs select 900 proposals, so they need as many positions.
    size = 256 if cfg.model.get('as_two_stage') else 128
    samples = dict(mmseg=_segmentation_sample, mmpretrain=_classification_sample)
    make = samples.get(cfg.get('default_scope'), _detection_sample)
    images = [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=[make(size) for _ in images])


def _metainfo(size: int) -> dict[str, Any]:
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (size, size))
    return dict(shapes, scale_factor=(1.0, 1.0), flip=False, border=[0, size, 0, size], img_id=0)


def _label_map(size: int) -> Tensor:
    return torch.randint(2, (1, size, size))


def _segmentation_sample(size: int) -> Any:
    from mmseg.structures import SegDataSample

    return SegDataSample(gt_sem_seg=PixelData(data=_label_map(size)), metainfo=_metainfo(size))


def _classification_sample(size: int) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_metainfo(size)).set_gt_label(0)


def _detection_sample(size: int) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor(_BOXES)
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    objects = dict(
        bboxes=boxes,
        labels=torch.zeros(len(boxes), dtype=torch.long),
        masks=BitmapMasks(masks.numpy(), size, size),
    )
    return DetDataSample(
        gt_instances=InstanceData(**objects),
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
        gt_sem_seg=PixelData(sem_seg=_label_map(size)),
        proposals=InstanceData(bboxes=boxes),
        metainfo=_metainfo(size),
    )
