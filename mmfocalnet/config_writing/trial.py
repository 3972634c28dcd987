"""One loss, one backward pass and one prediction of a model, on random images."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from mmfocalnet.config import find_dicts
from mmfocalnet.models.pretrained import drop_pretrained
from mmfocalnet.registry import type_name

_SIZE = (128, 128)  # height and width of most images
# Corners of the objects.
_BOXES = [[8.0, 8.0, 72.0, 56.0], [40.0, 48.0, 120.0, 120.0], [90.0, 4.0, 110.0, 30.0]]


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config with random weights, from a copy of its config.

    It has the batch norm of one process: mmcv's synchronized one needs compiled ops.
    """
    torch.manual_seed(0)
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in model:
        model.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)
    for part in find_dicts(model.get('data_preprocessor') or {}):
        if part.get('size'):  # of padding
            part['size'] = _SIZE
    for part in find_dicts(model):
        if type_name(part) == 'MMSyncBN':
            part['type'] = 'BN'
    drop_pretrained(model)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(model)
        model.init_weights()
    return model


def try_model(cfg: Config, model: nn.Module) -> None:
    """Compute a loss with its gradients and a prediction for random images.

    Args:
        cfg: The config.
        model: The model that it builds.

    Raises:
        Exception: Whatever the model raises.
        ArithmeticError: If the loss is NaN or infinite.
    """
    compute_gradients(cfg, model)
    model.eval()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.no_grad():
        model(**model.data_preprocessor(_batch(cfg, training=False), False), mode='predict')


def compute_gradients(cfg: Config, model: nn.Module) -> None:
    """Compute the loss of two random images and its gradients; raises as `try_model`."""
    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))  # for warm-up
    model.train()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        data = model.data_preprocessor(_batch(cfg, training=True), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    if not torch.isfinite(loss):
        raise ArithmeticError(f'the loss is {loss.item()}')
    loss.backward()


def _batch(cfg: Config, training: bool) -> dict[str, Any]:
    preprocessor = cfg.model.get('data_preprocessor') or {}
    trains_detector = training and preprocessor.get('use_det_processor')
    if type_name(preprocessor) == 'TrackDataPreprocessor' and not trains_detector:
        return _videos(cfg, training)
    if type_name(preprocessor) == 'MultiBranchDataPreprocessor' and training:
        return _branches(cfg)
    size = _image_size(cfg)
    samples = dict(mmseg=_segmentation_sample, mmpretrain=_classification_sample)
    make = samples.get(cfg.get('default_scope'), _detection_sample)
    count = 1 + training  # some models predict for single images only
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(count)]
    return dict(inputs=images, data_samples=[make(cfg, size) for _ in images])


def _image_size(cfg: Config) -> tuple[int, int]:
    if cfg.model.get('as_two_stage'):
        return (256, 256)  # two-stage DETRs select 900 proposals, so they need as many positions
    if type_name(cfg.model.get('head')) == 'CLRHead':
        return (320, 800)  # the only size that it accepts
    return (320, 320) if type_name(cfg.model.get('neck')) == 'SSDNeck' else _SIZE


def _branches(cfg: Config) -> dict[str, Any]:
    """Images with labels, and two views of images without, for semi-supervised training."""
    branches = ('sup', 'unsup_teacher', 'unsup_student')
    return dict(
        inputs={b: list(torch.randint(256, (2, 3, *_SIZE), dtype=torch.uint8)) for b in branches},
        data_samples={b: [_detection_sample(cfg, _SIZE) for _ in range(2)] for b in branches},
    )


def _metainfo(size: tuple[int, int]) -> dict[str, Any]:
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return dict(
        shapes,
        scale_factor=(1.0, 1.0),
        flip=False,
        border=[0, size[0], 0, size[1]],
        img_id=0,
        frame_id=0,
        homography_matrix=np.eye(3, dtype=np.float32),
        lines_array=_lanes(),
        org_height=size[0],
        org_width=size[1],
    )


def _lanes() -> np.ndarray:
    """One vertical lane and three empty rows, as CLRNet reads them."""
    lanes = np.zeros((4, 78), dtype=np.float32)
    lanes[:, 0] = 1  # score of "no lane"
    lanes[0] = [0, 1, 0, 400, 0.5, 72, *[400] * 72]
    return lanes


def _label_map(size: tuple[int, int]) -> Tensor:
    return torch.randint(2, (1, *size))


def _segmentation_sample(cfg: Config, size: tuple[int, int]) -> Any:
    from mmseg.structures import SegDataSample

    return SegDataSample(
        gt_sem_seg=PixelData(data=_label_map(size)),
        gt_edge_map=PixelData(data=_label_map(size)),
        gt_depth_map=PixelData(data=1 + torch.rand(1, *size)),
        metainfo=_metainfo(size),
    )


def _classification_sample(cfg: Config, size: tuple[int, int]) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_metainfo(size)).set_gt_label(0)


def _detection_sample(cfg: Config, size: tuple[int, int]) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor(_BOXES)
    objects = InstanceData(
        bboxes=boxes,
        labels=torch.zeros(len(boxes), dtype=torch.long),
        instances_ids=torch.arange(len(boxes)),
    )
    if any(part.get('with_mask') for part in find_dicts(cfg.get('train_dataloader') or {})):
        masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        objects.masks = BitmapMasks(masks.numpy(), *size)
    sample = DetDataSample(
        gt_instances=objects,
        ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)),
        gt_sem_seg=PixelData(sem_seg=_label_map(size)),
        metainfo=_metainfo(size),
    )
    if 'rpn_head' not in cfg.model:  # Fast R-CNN
        sample.proposals = InstanceData(bboxes=boxes)
    return sample


def _videos(cfg: Config, training: bool) -> dict[str, Any]:
    """Two videos of a key frame and a reference frame, or one of one frame for a prediction."""
    from mmdet.structures import TrackDataSample

    frames = videos = 1 + training
    samples = []
    for _ in range(videos):
        sample = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1]))
        sample.video_data_samples = [_detection_sample(cfg, _SIZE) for _ in range(frames)]
        samples.append(sample)
    images = torch.randint(256, (videos, frames, 3, *_SIZE), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=samples)
