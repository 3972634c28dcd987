"""Inspection of semantic label maps, as in ADE20K."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS

from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings, Report
from mmfocalnet.datasets.inspection.progress import look_at_each
from mmfocalnet.datasets.pictures import read_label_map, read_photograph
from mmfocalnet.errors import DataError

_IGNORED = 255


@dataclass
class _Looked:
    """What was seen of an image and its map: shapes or what is wrong; pixels of each value."""

    photograph: str | tuple[int, ...]
    map: str | tuple[int, ...]
    values: dict[int, int] = field(default_factory=dict)


def inspect_semantic(dataset: dict) -> Report:
    """Inspect a dataset of semantic label maps.

    Args:
        dataset: Config of a ``BaseSegDataset`` or of a kind of it.

    Returns:
        What is wrong, and how many pixels each class has.

    Raises:
        DataError: If mmseg does not take the dataset's settings.
    """
    source = _build(dataset)
    findings = Findings()
    counts = ClassCounts(source.metainfo.get('classes') or (), 'pixels')
    samples = source.data_list
    folder = source.data_prefix.get('img_path')
    if not samples:
        findings.add(kinds.NO_IMAGES, f'{folder} has no files *{source.img_suffix}')
    for sample, seen in look_at_each(_look, samples):
        _check_sample(sample, seen, findings)
        if seen.values:
            _count(sample['seg_map_path'], seen.values, source, counts, findings)
    _add_unused(source, counts, findings)
    return Report(f'{dataset["type"]} {folder}', len(samples), findings, counts)


def _build(dataset: dict) -> Any:
    """The dataset with a list of its files; nothing of the pipeline is used."""
    settings = {key: value for key, value in dataset.items() if key != 'indices'}
    try:
        # Serialised, the list could not be read at once.
        return DATASETS.build({**settings, 'pipeline': [], 'serialize_data': False})
    except Exception as error:
        raise DataError(
            f'{dataset["type"]} does not take its settings ({error}): correct the dataset of the '
            'config.'
        ) from error


def _look(sample: dict) -> _Looked:
    photograph = read_photograph(sample['img_path'])
    shape = photograph if isinstance(photograph, str) else photograph.shape[:2]
    if 'seg_map_path' not in sample:
        return _Looked(shape, 'is not in data_prefix')
    labels = read_label_map(sample['seg_map_path'])
    if isinstance(labels, str):
        return _Looked(shape, labels)
    return _Looked(shape, labels.shape, _count_values(labels) if labels.ndim == 2 else {})


def _count_values(labels: np.ndarray) -> dict[int, int]:
    if labels.dtype == np.uint8:
        numbers = np.bincount(labels.ravel(), minlength=256)
        values = np.flatnonzero(numbers)
        numbers = numbers[values]
    else:
        values, numbers = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def _check_sample(sample: dict, seen: _Looked, findings: Findings) -> None:
    image = sample['img_path']
    if isinstance(seen.photograph, str):
        missing = seen.photograph == 'is missing'
        kind = kinds.MISSING_IMAGE if missing else kinds.DAMAGED_IMAGE
        findings.add(kind, f'{image} {seen.photograph}')
    path = sample.get('seg_map_path', image)
    if isinstance(seen.map, str):
        kind = kinds.MISSING_MAP if seen.map == 'is missing' else kinds.DAMAGED_MAP
        findings.add(kind, f'{path} {seen.map}')
        return
    if len(seen.map) != 2:
        findings.add(kinds.MAP_CHANNELS, f'{path} has {seen.map[2]} channels, expected one')
    if not isinstance(seen.photograph, str) and seen.map[:2] != seen.photograph:
        (height, width), (image_height, image_width) = seen.map[:2], seen.photograph
        what = f'{path} is {width}x{height}, its image {image_width}x{image_height}'
        findings.add(kinds.MAP_SIZE, what)


def _count(
    path: str, values: dict[int, int], source: Any, counts: ClassCounts, findings: Findings
) -> None:
    labelled = False
    for value, number in values.items():
        label = _label(value, source)
        if label in (_IGNORED, source.ignore_index):
            continue
        labelled = True
        if 0 <= label < len(counts.names):
            counts.numbers[label] += number
            counts.images[label] += 1
        else:
            first = int(source.reduce_zero_label)
            findings.add(
                kinds.LABEL_RANGE,
                f'{path} has the value {value} in {number} pixels; expected {first} to '
                f'{first + len(counts.names) - 1}, or {"0 or " if first else ""}{_IGNORED} for '
                'pixels to ignore',
            )
    if not labelled:
        findings.add(kinds.NO_ANNOTATIONS, f'{path} has no labels but those to ignore')


def _label(value: int, source: Any) -> int:
    """The label that mmseg makes of a map's value."""
    if source.reduce_zero_label:
        # 0 and 255 become 255, the others one less.
        value = _IGNORED if value in (0, _IGNORED) else value - 1
    return (source.label_map or {}).get(value, value)


def _add_unused(source: Any, counts: ClassCounts, findings: Findings) -> None:
    folder = source.data_prefix.get('seg_map_path')
    for name, number in zip(counts.names, counts.numbers, strict=True):
        if not number:
            findings.add(kinds.UNUSED_CLASS, f'{folder}: {name}')
    if folder and not source.ann_file:  # a list may leave out what it likes
        known = {Path(sample['seg_map_path']) for sample in source.data_list}
        for path in sorted(Path(folder).rglob(f'*{source.seg_map_suffix}')):
            if path not in known:
                findings.add(kinds.UNUSED_MAP, str(path))
