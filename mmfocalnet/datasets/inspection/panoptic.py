"""Inspection of annotations in COCO's panoptic format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short

import numpy as np

from mmfocalnet.datasets.dataset_configs import join_root
from mmfocalnet.datasets.image_files import decode_image, inspect_image
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.annotations import (
    ID,
    NUMBER,
    AnnotationFile,
    ImageRecord,
    Place,
)
from mmfocalnet.datasets.inspection.findings import Findings, Report
from mmfocalnet.datasets.inspection.read_files import SampleFiles, count_pixels, read_each

_ANNOTATION = {'image_id': ID, 'segments_info': (list,)}
# mmdet accepts only integers as ids of categories.
_SEGMENT = {'id': (int,), 'category_id': (int,), 'area': NUMBER}
_THING = {'id': ID, 'isthing': (int, bool)}
# The value of unlabelled pixels in panoptic maps.
_VOID = 0
# Maximum in the three channels of a map.
_MAX_ID = 2**24 - 1


@dataclass
class _Sample:
    """An image, the path of its map, and the areas of its segments in segments_info by id."""

    image: ImageRecord
    label_map: str
    listed: dict[int, float] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f'{self.label_map} (image {self.image.id})'


def inspect_panoptic(dataset: dict, metrics: Sequence[dict], with_images: bool) -> Report:
    """Inspect a ``CocoPanopticDataset`` or a subclass: see `inspect_dataset`.

    Args:
        dataset: Config of the dataset.
        metrics: Configs of the metrics that compare predictions with its annotation file.
        with_images: Whether to read the images and maps; otherwise, only the existence of the
            maps is checked.
    """
    file = AnnotationFile(dataset, 'segments', evaluated=bool(metrics))
    folder = join_root(dataset, (dataset.get('data_prefix') or {}).get('seg') or '')
    # mmdet derives the path of the map from the image's name, not from the annotation.
    samples = {
        id_: _Sample(image, str(Path(folder, image.file_name.replace('.jpg', '.png'))))
        for id_, image in file.images.items()
    }
    _check_segments(file, samples)

    def read(sample: _Sample) -> SampleFiles:
        return _read(sample, with_map=bool(folder))

    for sample, files in read_each(read, list(samples.values()) if with_images else []):
        file.add_image(sample.image, files.image)
        if folder:
            _check_map(sample, files, file)
    if folder and not with_images:
        _check_existence(samples.values(), folder, file.findings)
    return Report(f'{dataset["type"]} {file.path}', len(file.images), file.findings, file.counts)


def _check_segments(file: AnnotationFile, samples: dict[object, _Sample]) -> None:
    """Check all segments in segments_info, and add them to the samples."""
    things = {
        record['id']
        for _, record in file.complete_records(file.category_records, _THING, 'categories')
        if record['isthing']
    }
    annotated, kept = set(), set()
    for place, record in file.complete_records(file.annotations, _ANNOTATION, 'annotations'):
        sample = samples.get(record['image_id'])
        if sample is None:
            file.add_unknown_image(place, record)
        elif record['segments_info']:
            annotated.add(sample.image.id)
        name = f'annotations[{place.index}].segments_info'
        for part, segment in file.complete_records(record['segments_info'], _SEGMENT, name):
            if sample is not None:
                _check_segment(file, part, segment, sample)
                # mmdet skips images without things.
                if file.evaluated or segment['category_id'] in things:
                    kept.add(sample.image.id)
    file.add_unused(annotated, kept)


def _check_segment(file: AnnotationFile, place: Place, segment: dict, sample: _Sample) -> None:
    place.image = sample.image
    id_, category = segment['id'], segment['category_id']
    if id_ in sample.listed:
        file.findings.add(kinds.DUPLICATE_ANNOTATION, str(place))
    if not _VOID < id_ <= _MAX_ID:
        file.findings.add(kinds.IDS, f'{place}: expected 1 to {_MAX_ID}')
    sample.listed[id_] = segment['area']
    # mmdet fails on segments of categories that are not classes.
    if category not in file.classes:
        reason = 'not a class of the config' if category in file.categories else 'not a category'
        file.findings.add(
            kinds.UNKNOWN_CATEGORY, f'{place} has category_id {short(category)}, {reason}'
        )
    file.count(category, sample.image.id)
    file.check_flags(place, segment)
    file.check_box(place, segment)


def _check_existence(samples: Iterable[_Sample], folder: str, findings: Findings) -> None:
    names = set()
    with suppress(OSError):
        names.update(os.listdir(folder))
    for sample in samples:
        path = Path(sample.label_map)
        # Listing the folder is faster than a stat for each of many thousand files.
        if not (path.parent == Path(folder) and path.name in names) and not path.is_file():
            findings.add(kinds.MISSING_MAP, f'{sample.place} is missing')


def _check_map(sample: _Sample, files: SampleFiles, file: AnnotationFile) -> None:
    findings, place, drawn = file.findings, sample.place, files.pixels
    if isinstance(files.label_map, str):
        findings.add_map(place, files.label_map)
        return
    if files.image.size and files.label_map != files.image.size:
        (height, width), (image_height, image_width) = files.label_map, files.image.size
        findings.add(
            kinds.MAP_SIZE, f'{place} is {width}x{height}, its image {image_width}x{image_height}'
        )
    for id_ in sorted(drawn.keys() - sample.listed.keys() - {_VOID}):
        findings.add(kinds.SEGMENT_NOT_LISTED, f'{place}: {id_}, {drawn[id_]} pixels')
    for id_, area in sample.listed.items():
        if id_ not in drawn:
            findings.add(kinds.SEGMENT_NOT_DRAWN, f'{place}: {id_}')
        elif area != drawn[id_]:
            text = f'{place}: {id_} has {drawn[id_]} pixels, {short(area)} in segments_info'
            kind = kinds.EVALUATED_AREA if file.evaluated else kinds.SEGMENT_AREA
            findings.add(kind, text)


def _read(sample: _Sample, with_map: bool) -> SampleFiles:
    image = inspect_image(sample.image.path)
    packed = decode_image(sample.label_map) if with_map else ''
    if isinstance(packed, str):
        return SampleFiles(image, packed, {})
    blue, green, red = np.moveaxis(packed.astype(np.int32), 2, 0)
    return SampleFiles(image, packed.shape[:2], count_pixels(red + 256 * green + 65536 * blue))
