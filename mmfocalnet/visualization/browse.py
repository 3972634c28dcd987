"""Pictures of what a network sees of a dataset, after augmentation."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.runner import set_random_seed
from mmengine.utils import track_iter_progress

from mmfocalnet.datasets.inspection import check_annotations, find_datasets
from mmfocalnet.datasets.unreadable import name_unreadable
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

_IGNORED = 255


def draw_samples(
    cfg: Config, split: str, out: Path, number: int, seed: int, show_interval: float | None
) -> Iterator[Path]:
    """Draw samples as the pipeline of a config's dataset makes them, with their labels.

    What the model's data preprocessor does is not in them: normalisation, padding to batches.
    In validation and test, whose labels keep the size of the image's file, it is drawn in it.

    Args:
        cfg: Config of a detector or segmentor.
        split: ``'train'``, ``'val'`` or ``'test'``.
        out: Folder for the pictures; made if it is missing.
        number: How many samples, chosen at random.
        seed: Of the choice and of the augmentation.
        show_interval: Seconds to show each for in a window, where there is a screen; None: not
            at all.

    Yields:
        The files, as they are written.

    Raises:
        ConfigError: If the config has no visualizer or no such dataset.
        DataError: If an annotation file has errors, or an image or label map cannot be read; in
            training others take its place.
        UserError: If the folder cannot be written to.
    """
    if not cfg.get(f'{split}_dataloader') or not cfg.get('visualizer'):
        raise ConfigError(
            f'{cfg.filename} needs {split}_dataloader and visualizer: see those of configs/_base_.'
        )
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise ConfigError(
            f'{cfg.filename} is no config of mmdet or mmseg, whose labels are drawn here: a '
            "classifier's are the names of its folders."
        )
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        settings = cfg[f'{split}_dataloader'].dataset
        datasets = list(find_datasets(settings))
        for inner in datasets:
            check_annotations(inner)
        late = _load_labels_late(datasets[0].get('pipeline') or ())
        dataset = DATASETS.build(settings)
        if split != 'train':
            name_unreadable(dataset)
        visualizer = _build_visualizer(cfg, dataset)
        make_folder('--output-dir', out)
        set_random_seed(seed)
        chosen = np.random.permutation(len(dataset))[:number]
        for index in track_iter_progress(np.sort(chosen).tolist(), file=sys.stdout):
            path = out / f'{index}.jpg'
            item = dataset[index]
            image = _image(item, original_size=late)
            interval = show_interval if _has_screen() else None
            _draw(visualizer, image, item['data_samples'], path, interval)
            yield path


def _build_visualizer(cfg: Config, dataset: BaseDataset) -> Visualizer:
    # Its backends would write every picture once more.
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None))
    meta = dataset.metainfo
    classes = meta.get('classes') or ()
    visualizer.dataset_meta = dict(meta, palette=find_palette(meta.get('palette'), len(classes)))
    return visualizer


def _load_labels_late(pipeline: Sequence[dict]) -> bool:
    """Whether labels are loaded after the image is resized, and keep its first size."""
    kinds = [str(type_name(step)) for step in pipeline]
    loaders = [place for place, kind in enumerate(kinds) if 'Annotations' in kind]
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
            # mmdet would paint the ground over the boxes.
            image = _draw_ground(visualizer, image, sample)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*out of bounds')  # of what crops cut
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
    """Turn boxes and masks into what mmdet draws."""
    if hasattr(instances.get('bboxes'), 'tensor'):
        instances.bboxes = instances.bboxes.tensor
    if 'masks' in instances:
        instances.masks = instances.masks.to_ndarray().astype(bool)


def _draw_ground(visualizer: Visualizer, image: np.ndarray, sample: DetDataSample) -> np.ndarray:
    """Draw what a panoptic sample has beside objects, and take it out of the sample."""
    ground = sample.new()
    del ground.gt_instances
    del sample.gt_sem_seg
    labels = ground.gt_sem_seg.sem_seg
    labels[labels < len(visualizer.dataset_meta.get('thing_classes') or ())] = _IGNORED
    visualizer.add_datasample('', image, ground.numpy(), draw_pred=False)
    return visualizer.get_image()


def _has_screen() -> bool:
    return sys.platform in ('win32', 'darwin') or any(
        os.environ.get(name) for name in ('DISPLAY', 'WAYLAND_DISPLAY')
    )
