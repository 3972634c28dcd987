"""Faults of datasets that can be named before anything is built or trained.

Annotation files are looked through as bytes: parsing COCO's 450 MB again would double the start
of a training.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from mmfocalnet.errors import DataError

if TYPE_CHECKING:
    from mmseg.structures import SegDataSample

IGNORE_LABEL = 255


def check_coco(dataset: dict) -> None:
    """Check a COCO-format dataset's categories and panoptic maps against its files.

    Args:
        dataset: Config of the dataset, of a ``CocoDataset`` of mmdet or a kind of it; anything
            else passes.

    Raises:
        DataError: If its categories are not those of ``metainfo``, in this order, or if maps
            that the annotation file names are not there.
    """
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(dataset['type'])
    if not hasattr(kind, 'COCOAPI'):
        return
    path = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
    classes = kind._load_metainfo(dataset.get('metainfo')).get('classes', ())
    with _contents(path) as content:
        _check_categories(path, content, classes)
        maps = (dataset.get('data_prefix') or {}).get('seg')
        if maps:
            folder = os.path.join(dataset.get('data_root') or '', maps)
            _check_maps(path, content, folder)


@contextmanager
def _contents(path: str) -> Iterator[mmap.mmap]:
    with open(path, 'rb') as file:
        if not os.path.getsize(path):
            raise DataError(f'{path} is empty: annotations in COCO format were expected.')
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _check_categories(path: str, content: mmap.mmap, classes: Sequence[str]) -> None:
    """mmdet drops classes that the file lacks, and numbers the others in the file's order."""
    names = [category['name'] for category in _categories(path, content)]
    if [name for name in names if name in classes] == list(classes):
        return
    missing = [name for name in classes if name not in names]
    fault = f'the file lacks {_some(missing)}' if missing else 'the order differs'
    raise DataError(
        f"{path} has the categories {_some(names)}, but the config's metainfo names "
        f'{_some(classes)} ({fault}): set metainfo=dict(classes=(...)) of the datasets and '
        "num_classes of the heads to the file's, in its order."
    )


def _categories(path: str, content: mmap.mmap) -> list[dict[str, Any]]:
    start = content.find(b'[', max(content.rfind(b'"categories"'), 0))
    # The list of categories is short, but the whole file may follow it.
    text = content[start : start + 2**20].decode('utf-8', 'ignore') if start >= 0 else ''
    try:
        categories = json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        categories = []
    if not categories or not all(
        isinstance(category, dict) and 'name' in category for category in categories
    ):
        raise DataError(
            f'{path} has no list of categories: annotations in COCO format were expected, with '
            '"images", "annotations" and "categories".'
        )
    return categories


def _check_maps(path: str, content: mmap.mmap, folder: str) -> None:
    named = {match.decode() for match in re.findall(rb'"file_name": *"([^"]+\.png)"', content)}
    unseen = named - set(os.listdir(folder))
    missing = sorted(name for name in unseen if not Path(folder, name).is_file())
    if missing:
        raise DataError(
            f'{folder} lacks {len(missing)} of the {len(named)} panoptic maps that {path} names '
            f'({_some(missing)}): unpack {Path(folder).name}.zip there, or correct '
            'data_prefix.seg of the dataset.'
        )


def _some(names: Sequence[str]) -> str:
    shown = ', '.join(names[:4])
    return f'{shown}, ... ({len(names)} in all)' if len(names) > 4 else shown


@HOOKS.register_module()
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
        classes = getattr(runner, f'{mode}_dataloader').dataset.metainfo['classes']
        for sample in data_batch['data_samples']:
            # Test-time augmentation has a list of views of each image, of one label map.
            sample = sample[0] if isinstance(sample, (list, tuple)) else sample
            if 'gt_sem_seg' in sample:
                _check_labels(sample, len(classes))


def _check_labels(sample: SegDataSample, num_classes: int) -> None:
    labels = sample.gt_sem_seg.data
    wrong = labels[(labels >= num_classes) & (labels != IGNORE_LABEL)]
    if not wrong.numel():
        return
    # ADE20K's files count classes from 1, 0 being ignored.
    first = int(sample.get('reduce_zero_label') or 0)
    raise DataError(
        f'{sample.seg_map_path} holds the label {int(wrong.max()) + first}, but the dataset has '
        f'{num_classes} classes, with labels {first} to {num_classes - 1 + first}: correct the '
        f'label map (pixels to ignore are {"0 or " if first else ""}{IGNORE_LABEL}), or metainfo '
        'and reduce_zero_label of the dataset.'
    )
