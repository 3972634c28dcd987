"""Images of the samples of a dataset, after augmentation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.runner import set_random_seed
from rich.progress import track

from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.datasets.inspection import check_annotations
from mmfocalnet.datasets.label_maps import IGNORED
from mmfocalnet.datasets.skip_unreadable import raise_on_unreadable
from mmfocalnet.errors import ConfigError
from mmfocalnet.files import make_folder
from mmfocalnet.inference.colors import find_palette
from mmfocalnet.registry import type_name

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmengine.dataset import BaseDataset
    from mmengine.structures import InstanceData
    from mmengine.visualization import Visualizer
    from mmseg.structures import SegDataSample


def draw_samples(
    cfg: Config, split: str, out: Path, number: int, seed: int, show_interval: float | None
) -> Iterator[Path]:
    """Draw samples of a dataset with their labels, after its pipeline.

    The model's data preprocessor (normalisation, padding to batches) is not applied. Samples of
    validation and test, whose labels keep the size of the file, are drawn in that size.

    Args:
        cfg: Config of a detector or segmentor.
        split: ``'train'``, ``'val'`` or ``'test'``.
        out: Folder for the images; created if missing.
        number: Number of random samples.
        seed: Seed of sampling and augmentation.
        show_interval: Seconds to show each image in a window if there is a display; None to show
            none.

    Yields:
        The paths of the written files.

    Raises:
        ConfigError: If the config has no visualizer or no such dataset.
        DataError: If an annotation file has errors, or an image or label map cannot be read; the
            training split skips such files.
        UserError: If the folder cannot be written to.
    """
    if not cfg.get(f'{split}_dataloader') or not cfg.get('visualizer'):
        raise ConfigError(
            f'{cfg.filename} needs {split}_dataloader and visualizer: see those of configs/_base_.'
        )
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise ConfigError(
            f'{cfg.filename} is not a config of mmdet or mmseg: only boxes, masks and label maps '
            'can be drawn.'
        )
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        settings = cfg[f'{split}_dataloader'].dataset
        datasets = list(find_datasets(settings))
        for inner in datasets:
            check_annotations(inner)
        late = _load_labels_late(datasets[0].get('pipeline') or ())
        dataset = DATASETS.build(settings)
        if split != 'train':
            raise_on_unreadable(dataset)
        visualizer = _build_visualizer(cfg, dataset)
        make_folder('--output-dir', out)
        set_random_seed(seed)
        chosen = np.random.permutation(len(dataset))[:number]
        interval = show_interval if _has_display() else None
        for index in track(np.sort(chosen).tolist(), 'Drawing', disable=not sys.stdout.isatty()):
            path = out / f'{index}.jpg'
            item = dataset[index]
            image = _image(item, original_size=late)
            _draw(visualizer, image, item['data_samples'], path, interval)
            yield path


def _build_visualizer(cfg: Config, dataset: BaseDataset) -> Visualizer:
    # Its backends would write every image again.
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None))
    meta = dataset.metainfo
    classes = meta.get('classes') or ()
    visualizer.dataset_meta = dict(meta, palette=find_palette(meta.get('palette'), len(classes)))
    return visualizer


def _load_labels_late(pipeline: Sequence[dict]) -> bool:
    """Whether labels are loaded after the image is resized, and keep the original size."""
    kinds = [str(type_name(step)) for step in pipeline]
    loaders = [index for index, kind in enumerate(kinds) if 'Annotations' in kind]
    return bool(loaders) and any('Resize' in kind for kind in kinds[: loaders[0]])


def _image(item: dict, original_size: bool) -> np.ndarray:
    """The image of a sample as (H, W, 3) uint8 in RGB."""
    image = np.ascontiguousarray(item['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
    if original_size:
        image = cv2.resize(image, item['data_samples'].ori_shape[1::-1])
    return image


def _draw(
    visualizer: Visualizer,
    image: np.ndarray,
    sample: DetDataSample | SegDataSample,
    path: Path,
    show_interval: float | None,
) -> None:
    if 'gt_instances' in sample:
        _prepare_instances(sample.gt_instances)
        if 'gt_sem_seg' in sample:
            # mmdet would draw the stuff over the boxes.
            image = _draw_stuff(visualizer, image, sample)
    visualizer.add_datasample(
        path.stem,
        image,
        sample.numpy(),
        draw_pred=False,
        show=show_interval is not None,
        wait_time=show_interval or 0,
        out_file=str(path),
    )


def _prepare_instances(instances: InstanceData) -> None:
    """Convert boxes and masks to the types that mmdet draws."""
    if hasattr(instances.get('bboxes'), 'tensor'):
        instances.bboxes = instances.bboxes.tensor
    if 'masks' in instances:
        instances.masks = instances.masks.to_ndarray().astype(bool)


def _draw_stuff(visualizer: Visualizer, image: np.ndarray, sample: DetDataSample) -> np.ndarray:
    """Draw the stuff of a panoptic sample, and remove it from the sample."""
    stuff = sample.new()
    del stuff.gt_instances
    del sample.gt_sem_seg
    labels = stuff.gt_sem_seg.sem_seg
    labels[labels < len(visualizer.dataset_meta.get('thing_classes') or ())] = IGNORED
    visualizer.add_datasample('', image, stuff.numpy(), draw_pred=False)
    return visualizer.get_image()


def _has_display() -> bool:
    return sys.platform in ('win32', 'darwin') or any(
        os.environ.get(name) for name in ('DISPLAY', 'WAYLAND_DISPLAY')
    )
