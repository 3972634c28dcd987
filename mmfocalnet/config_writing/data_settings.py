"""Datasets, pipelines and metrics of a recipe for other data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmfocalnet.config import find_dicts
from mmfocalnet.config_writing.labels import Labels, Split
from mmfocalnet.datasets.dataset_configs import base_names, dataset_class
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import type_name

_DATASETS = dict(instances='CocoDataset', panoptic='CocoPanopticDataset', semantic='BaseSegDataset')
# Base classes of the datasets that they may replace.
_KNOWN = dict(instances='BaseDetDataset', panoptic='CocoPanopticDataset', semantic='BaseSegDataset')
_KEPT = ('pipeline', 'filter_cfg', 'test_mode', 'lazy_init')  # of a dataset of another type
_BOX_METRICS = ('CocoMetric', 'VOCMetric', 'LVISMetric', 'CityScapesMetric', 'OpenImagesMetric')


def label_kind(cfg: Config) -> str:
    """The labels that a recipe needs: ``'instances'``, ``'panoptic'`` or ``'semantic'``."""
    if cfg.get('default_scope') == 'mmseg':
        return 'semantic'
    heads = [part for part in find_dicts(cfg.model) if part.get('num_stuff_classes')]
    return 'panoptic' if heads else 'instances'


def set_data(cfg: Config, labels: Labels) -> None:
    """Set the datasets, pipelines and metrics, and drop mask heads if objects have no masks.

    Raises:
        ConfigError: If the recipe needs masks or label maps that the data lacks.
    """
    _check_recipe(cfg)
    if labels.kind == 'instances':
        _check_maps(cfg)
        if not labels.masks:
            _drop_masks(cfg)
    cfg.data_root = f'{labels.root}{os.sep}'
    cfg.metainfo = ConfigDict(classes=labels.classes)
    if labels.kind == 'panoptic':
        things = len(labels.classes) - labels.stuff
        cfg.metainfo.thing_classes = labels.classes[:things]
        cfg.metainfo.stuff_classes = labels.classes[things:]
    for name in ('train', 'val', 'test'):
        split = labels.splits.get(name, labels.splits['val'])
        loader = cfg.get(f'{name}_dataloader')
        if loader:
            with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
                loader.dataset = _set_dataset(cfg, loader.dataset, labels, split)
            for step in find_dicts(loader.dataset):
                if type_name(step) == 'LoadAnnotations' and 'reduce_zero_label' in step:
                    step.reduce_zero_label = labels.reduce_zero_label  # as of the dataset
        if name != 'train' and cfg.get(f'{name}_evaluator'):
            cfg[f'{name}_evaluator'] = _evaluator(cfg[f'{name}_evaluator'], labels, split)


def _check_recipe(cfg: Config) -> None:
    for key in ('train_dataloader', 'val_dataloader'):
        if not cfg.get(key):
            raise ConfigError(f'{cfg.filename} has no {key}: specify a config that trains.')
    if type_name(cfg.model.get('data_preprocessor')) == 'MultiBranchDataPreprocessor':
        raise ConfigError(
            f'{cfg.filename} trains on images without labels as well, which this tool does not set '
            'up: specify another recipe.'
        )
    if any('proposal_file' in part for part in find_dicts(cfg.train_dataloader)):
        raise ConfigError(
            f'{cfg.filename} trains on a file of proposals: specify a recipe without one.'
        )


def _check_maps(cfg: Config) -> None:
    for step in find_dicts(cfg.train_dataloader):
        if step.get('with_seg'):
            raise ConfigError(
                f'{cfg.filename} trains on label maps of stuff as well (with_seg), which this tool '
                'does not set up: specify a recipe without them.'
            )


def _drop_masks(cfg: Config) -> None:
    roi_head = cfg.model.get('roi_head') or {}
    if roi_head.get('mask_head'):
        roi_head.update(mask_head=None, mask_roi_extractor=None)
    for split in ('train', 'val', 'test'):
        for step in find_dicts(cfg.get(f'{split}_dataloader') or {}):
            if step.get('with_mask'):
                step.with_mask = False
    mask_only = [p for p in find_dicts(cfg.model) if 'loss_mask' in p or 'mask_head' in p]
    if any(part.get('loss_mask') or part.get('mask_head') for part in mask_only):
        raise ConfigError(
            f'{cfg.filename} needs masks, and the annotations have boxes only: use a recipe for '
            'boxes, such as one of configs/atss.'
        )


def _set_dataset(cfg: Config, dataset: ConfigDict, labels: Labels, split: Split) -> ConfigDict:
    """The dataset of a loader with the files of a split, in the same wrappers."""
    wrapped = dataset.get('dataset')
    if type_name(dataset) == 'ConcatDataset':
        return _set_dataset(cfg, dataset.datasets[0], labels, split)
    if wrapped:
        dataset.dataset = _set_dataset(cfg, wrapped, labels, split)
        return dataset
    if _KNOWN[labels.kind] not in base_names(dataset_class(dataset)):
        raise ConfigError(
            f'{cfg.filename} trains on a {type_name(dataset)}: specify a recipe for detection or '
            'segmentation.'
        )
    kind = _DATASETS[labels.kind]
    if type_name(dataset) != kind:
        kept = {key: dataset[key] for key in _KEPT if key in dataset}
        dataset = ConfigDict(type=kind, **kept)
    settings = dict(data_root=cfg.data_root, metainfo=cfg.metainfo)
    if labels.kind == 'semantic':
        dataset.pop('ann_file', None)
        settings.update(
            data_prefix=dict(img_path=split.images, seg_map_path=split.maps),
            reduce_zero_label=labels.reduce_zero_label,
            img_suffix=labels.suffixes[0],
            seg_map_suffix=labels.suffixes[1],
        )
    else:
        maps = dict(seg=f'{split.maps}/') if split.maps else {}
        settings.update(ann_file=split.ann_file, data_prefix=dict(img=f'{split.images}/', **maps))
    for key, value in settings.items():
        dataset[key] = value  # `update` would merge dicts
    return dataset


def _evaluator(evaluator: Any, labels: Labels, split: Split) -> Any:
    """The metrics of a split; those that need other labels are dropped."""
    if labels.kind == 'semantic':
        if 'IoUMetric' in map(type_name, _listed(evaluator)):
            return evaluator
        return ConfigDict(type='IoUMetric', iou_metrics=['mIoU'])
    metrics = list(_metrics(_listed(evaluator), labels, split))
    if not metrics:
        metric = dict(instances='CocoMetric', panoptic='CocoPanopticMetric')[labels.kind]
        metrics = list(_metrics([ConfigDict(type=metric)], labels, split))
    return metrics if len(metrics) > 1 else metrics[0]


def _metrics(metrics: list, labels: Labels, split: Split) -> Iterator[ConfigDict]:
    ann_file = os.path.join(labels.root, split.ann_file)
    for metric in metrics:
        if type_name(metric) == 'CocoPanopticMetric' and labels.kind == 'panoptic':
            maps = os.path.join(labels.root, split.maps, '')
            yield ConfigDict(metric, ann_file=ann_file, seg_prefix=maps)
        elif type_name(metric) in _BOX_METRICS and labels.kind == 'instances':
            is_coco = type_name(metric) == 'CocoMetric'
            wanted = metric.get('metric', 'bbox') if is_coco and labels.masks else 'bbox'
            kept = metric if is_coco else dict(type='CocoMetric')
            yield ConfigDict(kept, ann_file=ann_file, metric=wanted)


def _listed(evaluator: Any) -> list:
    return list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
