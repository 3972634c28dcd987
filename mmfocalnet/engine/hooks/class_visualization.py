"""Test images of a classifier with the predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from mmfocalnet.registry import register


@register(HOOKS)
class ClassVisualizationHook(Hook):
    """Draw the test images of a classifier with the predicted class and score.

    Args:
        draw: Whether to draw predictions, as in the hooks of mmdet and mmseg. Defaults to False.
        interval: Draw the images of every ``interval``-th batch. Defaults to 1.
        show: Show them in a window instead of writing them through the visualizer. Defaults
            to False.
        wait_time: Seconds to show each image. Defaults to 0: until a key is pressed.
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
        """Draw the original images of a batch with class and score."""
        if not self.draw or batch_idx % self.interval:
            return
        classes = runner.test_dataloader.dataset.metainfo['classes']
        for sample in outputs:
            image = _draw_label(runner.visualizer, sample, classes)
            if self.show:
                runner.visualizer.show(image, wait_time=self.wait_time)
            else:
                name = f'{self._number:05d}_{Path(sample.img_path).stem}'
                runner.visualizer.add_image(name, image)
            self._number += 1


def _draw_label(
    visualizer: Visualizer, sample: BaseDataElement, classes: Sequence[str]
) -> np.ndarray:
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    # Enlarged, so that the text is legible on small images.
    image = mmcv.imrescale(image, (512, 512), interpolation='nearest')
    label = int(sample.pred_label)
    text = f'{classes[label]} {sample.pred_scores[label]:.0%}'
    right = 'gt_label' not in sample or int(sample.gt_label) == label
    if not right:
        text += f' (truth: {classes[int(sample.gt_label)]})'
    visualizer.set_image(image)
    visualizer.draw_texts(
        text,
        np.array([8.0, 8.0]),
        font_sizes=18,
        colors='w',
        bboxes=dict(facecolor='black' if right else 'red', alpha=0.7, edgecolor='none'),
    )
    return visualizer.get_image()
