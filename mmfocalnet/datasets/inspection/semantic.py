"""Inspection of semantic label maps, as in ADE20K."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmfocalnet.datasets.image_faults import (
    FLOATING,
    Seen,
    look_at_image,
    read_label_map,
    shape_fault,
)
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings, Report
from mmfocalnet.datasets.inspection.progress import look_at_each
from mmfocalnet.datasets.label_maps import (
    IGNORED,
    blank_fault,
    build_source,
    irregular_images,
    label_of,
)


@dataclass
class _Looked:
    """What was seen of an image and its map: shape or what is wrong; pixels of each value."""

    photograph: Seen
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
    source = build_source({key: value for key, value in dataset.items() if key != 'indices'})
    findings = Findings()
    counts = ClassCounts(source.metainfo.get('classes') or (), 'pixels')
    samples = source.data_list
    folder = source.data_prefix.get('img_path')
    if not samples:
        findings.add(kinds.NO_IMAGES, f'{folder} has no files *{source.img_suffix}')
    values: set[int] = set()
    for sample, seen in look_at_each(_look, samples):
        _check_sample(sample, seen, findings)
        values.update(seen.values)
        if seen.values:
            _count(sample['seg_map_path'], seen.values, source, counts, findings)
    for path in irregular_images(source):
        findings.add(kinds.DAMAGED_IMAGE, f'{path} is not a regular file')
    if fault := blank_fault(values, source):
        findings.add(kinds.NO_LABELS, fault)
    _add_unused(source, counts, findings)
    return Report(f'{dataset["type"]} {folder}', len(samples), findings, counts)


def _look(sample: dict) -> _Looked:
    photograph = look_at_image(sample['img_path'])
    if 'seg_map_path' not in sample:
        return _Looked(photograph, 'is not in data_prefix')
    labels = read_label_map(sample['seg_map_path'])
    if isinstance(labels, str):
        return _Looked(photograph, labels)
    return _Looked(photograph, labels.shape, _count_values(labels))


def _count_values(labels: np.ndarray) -> dict[int, int]:
    """Pixels of each value of a map; none of one that mmseg does not take."""
    if labels.ndim != 2 or labels.dtype.kind == 'f':
        return {}
    if labels.dtype == np.uint8:
        numbers = np.bincount(labels.ravel(), minlength=256)
        values = np.flatnonzero(numbers)
        numbers = numbers[values]
    else:
        values, numbers = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def _check_sample(sample: dict, seen: _Looked, findings: Findings) -> None:
    image = sample['img_path']
    findings.add_image(image, seen.photograph)
    path = sample.get('seg_map_path', image)
    if isinstance(seen.map, str):
        kind = kinds.MISSING_MAP if seen.map == 'is missing' else kinds.DAMAGED_MAP
        findings.add(kind, f'{path} {seen.map}')
    elif fault := shape_fault(seen.map, seen.photograph.size):
        kind = kinds.MAP_SIZE if len(seen.map) == 2 else kinds.MAP_CHANNELS
        findings.add(kind, f'{path} {fault}')
    elif not seen.values:
        findings.add(kinds.MAP_VALUES, f'{path} {FLOATING}')


def _count(
    path: str, values: dict[int, int], source: Any, counts: ClassCounts, findings: Findings
) -> None:
    labelled = False
    for value, number in values.items():
        label = label_of(value, source)
        if label == IGNORED:
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
                f'{first + len(counts.names) - 1}, or {"0 or " if first else ""}{IGNORED} for '
                'pixels to ignore',
            )
    if not labelled:
        findings.add(kinds.NO_ANNOTATIONS, f'{path} has no labels but those to ignore')


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
