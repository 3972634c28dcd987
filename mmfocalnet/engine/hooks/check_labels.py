"""Check that label maps contain classes of the dataset only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocalnet.datasets.label_maps import IGNORED
from mmfocalnet.errors import DataError
from mmfocalnet.registry import register

if TYPE_CHECKING:
    from mmseg.structures import SegDataSample


@register(HOOKS)
class CheckLabelsHook(Hook):
    """Stop a run at a label map with an id that is not a class of its dataset.

    On a GPU the loss would fail with an assertion without file and value; mmseg's IoU would
    silently ignore such pixels.
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
