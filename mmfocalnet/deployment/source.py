"""Build the network of an exported file from a model or a config."""

from __future__ import annotations

import math
import os
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmfocalnet.checkpoints import cached_reads
from mmfocalnet.deployment.backbone import BackboneNetwork
from mmfocalnet.deployment.formats import MIN_SIDE
from mmfocalnet.deployment.graph import ExportGraph, Preprocessing
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import load_pretrained
from mmfocalnet.models.focalnet import FocalNet


def model_graph(
    model: nn.Module, task: str, raw: bool = False, grid_sample: bool = True
) -> ExportGraph:
    """Build the graph of a segmentor or detector.

    Args:
        model: The model of mmdet or mmseg, in eval mode.
        task: ``'semantic'``, ``'panoptic'``, ``'boxes'`` or ``'boxes and masks'``.
        raw: Whether the input is normalized already. Defaults to False.
        grid_sample: Whether deformable attention uses GridSample. Defaults to True.

    Raises:
        ConfigError: If the model is not supported.
    """
    preprocessing = Preprocessing(model.data_preprocessor)
    if task == 'panoptic':
        raise ConfigError(
            f'{type(model).__name__} predicts panoptic maps, which cannot be exported: use '
            '--backbone-only, or a semantic model or a detector.'
        )
    if task == 'semantic':
        from mmfocalnet.deployment.semantic import SemanticNetwork

        network: nn.Module = SemanticNetwork(model, grid_sample)
    else:
        from mmfocalnet.deployment.detectors import build_detector

        network = build_detector(model, grid_sample)
    return ExportGraph(network, preprocessing, raw).eval()


def backbone_graph(
    cfg: Config, checkpoint: str | os.PathLike | None = None, raw: bool = False
) -> ExportGraph:
    """Build the FocalNet of a config, and its graph.

    Args:
        cfg: The config, with ``model.backbone``.
        checkpoint: Weights as for `mmfocalnet.models.load_pretrained`: of the complete model, or of
            a classifier, fitted to the backbone. Defaults to None: random weights.
        raw: Whether the input is normalized already. Defaults to False.

    Raises:
        ConfigError: If the config has no FocalNet.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    settings = cfg.model.get('backbone')
    if not isinstance(settings, dict):
        raise ConfigError(f'{cfg.filename} has no model.backbone, which --backbone-only exports.')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        backbone = MODELS.build(dict(settings, init_cfg=None))
        source = MODELS.build(
            cfg.model.get('data_preprocessor') or dict(type='BaseDataPreprocessor')
        )
    if not isinstance(backbone, FocalNet):
        raise ConfigError(
            f'model.backbone of {cfg.filename} is {type(backbone).__name__}: --backbone-only '
            'exports a FocalNet.'
        )
    if checkpoint is not None:
        with cached_reads():
            load_pretrained(backbone, checkpoint)
    return ExportGraph(BackboneNetwork(backbone), Preprocessing(source), raw).eval()


def default_size(resize: dict[str, Any] | None, divisor: int) -> tuple[int, int]:
    """Derive the height and width of the images from the test pipeline.

    Args:
        resize: Its scaling (`find_resize`).
        divisor: Height and width are rounded up to multiples of it.

    Returns:
        For pipelines that keep the aspect ratio, the short side as height and the long side as
        width.

    Raises:
        ConfigError: If the pipeline has no scaling.
    """
    if resize is None:
        raise ConfigError(
            'The test pipeline does not scale images: specify --size HEIGHT WIDTH or --dynamic.'
        )
    width, height = resize['scale']
    if resize['keep_ratio']:
        height, width = sorted((height, width))
    return _round_up(height, divisor), _round_up(width, divisor)


def _round_up(side: int, divisor: int) -> int:
    return max(MIN_SIDE, math.ceil(side / divisor) * divisor)
