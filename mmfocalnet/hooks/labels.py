"""Label maps that a dataset has no classes for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from mmfocalnet.errors import DataError
from mmfocalnet.registration import register

if TYPE_CHECKING:
    from mmseg.structures import SegDataSample

IGNORED = 255


@register(HOOKS)
class CheckLabelsHook(Hook):
    """Stop a run at a label map with ids that its dataset has no class for.

    The loss would end a training too, on a GPU with an assertion that names neither file nor
    value; mmseg's IoU would leave such pixels out without a word.
    """

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, mode: str = 'train'
    ) -> None:
        """Check the label maps (1, H, W) of a batch before it is used.

        Raises:
            DataError: If one holds an id that is neither a class nor 255, which is ignored.
        """
        classes = getattr(runner, f'{mode}_dataloader').dataset.metainfo.get('classes')
        for sample in data_batch['data_samples'] if classes else ():
            # Test-time augmentation has a list of views of each image, of one label map.
            sample = sample[0] if isinstance(sample, (list, tuple)) else sample
            if 'gt_sem_seg' in sample:
                _check_labels(sample, len(classes))


def _check_labels(sample: SegDataSample, num_classes: int) -> None:
    labels = sample.gt_sem_seg.data
    wrong = labels[(labels >= num_classes) & (labels != IGNORED)]
    if not wrong.numel():
        return
    # ADE20K's files count classes from 1, 0 being ignored.
    first = int(sample.get('reduce_zero_label') or 0)
    raise DataError(
        f'{sample.get("seg_map_path", "A label map")} holds the label {int(wrong.max()) + first}, '
        f'but the dataset has {num_classes} classes, with labels {first} to '
        f'{num_classes - 1 + first}: correct the label map (pixels to ignore are '
        f'{"0 or " if first else ""}{IGNORED}), or metainfo and reduce_zero_label of the dataset.'
    )


@HOOKS.register_module()
class ClassVisualizationHook(Hook):
    """Draw the images that a classifier is tested with, named for what it sees in them.

    Args:
        draw: Whether to draw anything, as the hooks of mmdet and mmseg. Defaults to False.
        interval: Draw the images of every so many-th batch. Defaults to 1.
        show: Show them in a window instead of writing them through the visualizer. Defaults
            to False.
        wait_time: Seconds that the window stays. Defaults to 0: until a key is pressed.
    """

    def __init__(
        self, draw: bool = False, interval: int = 1, show: bool = False, wait_time: float = 0.0
    ) -> None:
        self.draw = draw
        self.interval = interval
        self.show = show
        self.wait_time = wait_time
        self._number = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw the images of a batch, as their files are, with class and score above them."""
        if not self.draw or batch_idx % self.interval:
            return
        classes = runner.test_dataloader.dataset.metainfo['classes']
        for sample in outputs:
            picture = _named_picture(runner.visualizer, sample, classes)
            if self.show:
                runner.visualizer.show(picture, wait_time=self.wait_time)
            else:
                name = f'{self._number:05d}_{Path(sample.img_path).stem}'
                runner.visualizer.add_image(name, picture)
            self._number += 1


def _named_picture(
    visualizer: Visualizer, sample: BaseDataElement, classes: Sequence[str]
) -> np.ndarray:
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    # Enlarged, so that the name on a thumbnail can be read.
    image = mmcv.imrescale(image, (512, 512), interpolation='nearest')
    label = int(sample.pred_label)
    text = f'{classes[label]} {sample.pred_scores[label]:.0%}'
    right = 'gt_label' not in sample or int(sample.gt_label) == label
    if not right:
        text += f' (is {classes[int(sample.gt_label)]})'
    visualizer.set_image(image)
    visualizer.draw_texts(
        text,
        np.array([8.0, 8.0]),
        font_sizes=18,
        colors='w',
        bboxes=dict(facecolor='black' if right else 'red', alpha=0.7, edgecolor='none'),
    )
    return visualizer.get_image()
