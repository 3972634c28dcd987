"""Inspection of semantic label maps, as in ADE20K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmfocalnet.datasets.image_files import (
    FLOATING,
    decode_label_map,
    inspect_image,
    shape_fault,
)
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.findings import ClassCounts, Findings, Report
from mmfocalnet.datasets.inspection.read_files import SampleFiles, count_pixels, read_each
from mmfocalnet.datasets.label_maps import (
    IGNORED,
    blank_fault,
    build_source,
    irregular_images,
    label_of,
)


def inspect_semantic(dataset: dict) -> Report:
    """Inspect a ``BaseSegDataset`` or a subclass: see `inspect_dataset`."""
    source = build_source({key: value for key, value in dataset.items() if key != 'indices'})
    findings = Findings()
    counts = ClassCounts(source.metainfo.get('classes') or (), 'pixels')
    samples = source.data_list
    folder = source.data_prefix.get('img_path')
    if not samples:
        findings.add(kinds.NO_IMAGES, f'{folder} has no files *{source.img_suffix}')
    values: set[int] = set()
    for sample, files in read_each(_read, samples):
        _check_sample(sample, files, findings)
        values.update(files.pixels)
        if files.pixels:
            _count(sample['seg_map_path'], files.pixels, source, counts, findings)
    for path in irregular_images(source):
        findings.add(kinds.DAMAGED_IMAGE, f'{path} is not a regular file')
    if fault := blank_fault(values, source):
        findings.add(kinds.NO_LABELS, fault)
    _add_unused(source, counts, findings)
    return Report(f'{dataset["type"]} {folder}', len(samples), findings, counts)


def _read(sample: dict) -> SampleFiles:
    image = inspect_image(sample['img_path'])
    if 'seg_map_path' not in sample:
        return SampleFiles(image, 'has no label map: data_prefix lacks seg_map_path', {})
    labels = decode_label_map(sample['seg_map_path'])
    if isinstance(labels, str):
        return SampleFiles(image, labels, {})
    is_countable = labels.ndim == 2 and labels.dtype.kind != 'f'
    return SampleFiles(image, labels.shape, count_pixels(labels) if is_countable else {})


def _check_sample(sample: dict, files: SampleFiles, findings: Findings) -> None:
    findings.add_image(sample['img_path'], files.image)
    path = sample.get('seg_map_path', sample['img_path'])
    if isinstance(files.label_map, str):
        findings.add_map(path, files.label_map)
    elif fault := shape_fault(files.label_map, files.image.size):
        kind = kinds.MAP_SIZE if len(files.label_map) == 2 else kinds.MAP_CHANNELS
        findings.add(kind, f'{path} {fault}')
    elif not files.pixels:
        findings.add(kinds.MAP_VALUES, f'{path} {FLOATING}')


def _count(
    path: str, pixels: dict[int, int], source: Any, counts: ClassCounts, findings: Findings
) -> None:
    labels = {value: label_of(value, source) for value in pixels}
    for value, label in labels.items():
        if label == IGNORED:
            continue
        if 0 <= label < len(counts.names):
            counts.numbers[label] += pixels[value]
            counts.images[label] += 1
        else:
            first = int(source.reduce_zero_label)
            findings.add(
                kinds.LABEL_RANGE,
                f'{path} has the value {value} in {pixels[value]} pixels, expected {first} to '
                f'{first + len(counts.names) - 1}, or {"0 or " if first else ""}{IGNORED} for '
                'pixels to ignore',
            )
    if set(labels.values()) == {IGNORED}:
        findings.add(kinds.NO_ANNOTATIONS, f'{path}: all pixels are ignored')


def _add_unused(source: Any, counts: ClassCounts, findings: Findings) -> None:
    folder = source.data_prefix.get('seg_map_path')
    for name, number in zip(counts.names, counts.numbers, strict=True):
        if not number:
            findings.add(kinds.UNUSED_CLASS, f'{folder}: "{name}"')
    if folder and not source.ann_file:  # a list may select some of the files
        known = {Path(sample['seg_map_path']) for sample in source.data_list}
        for path in sorted(Path(folder).rglob(f'*{source.seg_map_suffix}')):
            if path not in known:
                findings.add(kinds.UNUSED_MAP, str(path))
