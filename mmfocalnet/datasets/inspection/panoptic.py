"""Inspection of annotations in COCO's panoptic format."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mmfocalnet.datasets.checks import join_root
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.coco import (
    CocoFile,
    Photograph,
    add_photograph,
    check_box,
)
from mmfocalnet.datasets.inspection.findings import Findings, Report
from mmfocalnet.datasets.inspection.progress import look_at_each
from mmfocalnet.datasets.pictures import read_photograph

_ANNOTATION = {'image_id': Hashable, 'segments_info': list}
_SEGMENT = {'id': int, 'category_id': Hashable, 'area': (int, float)}
# What panoptic maps have where nothing is labelled.
_VOID = 0


@dataclass
class _Labelled:
    """An image, its map and what segments_info says of it."""

    image: Photograph
    map: str
    listed: dict[int, float] = field(default_factory=dict)


@dataclass
class _Looked:
    """What was seen of an image and its map: sizes or what is wrong; pixels of each segment."""

    photograph: str | tuple[int, int]
    map: str | tuple[int, int]
    drawn: dict[int, int] = field(default_factory=dict)


def inspect_panoptic(dataset: dict) -> Report:
    """Inspect a panoptic dataset.

    Args:
        dataset: Config of a ``CocoPanopticDataset``.

    Returns:
        What is wrong, and how many segments each class has.

    Raises:
        DataError: If the annotation file is no valid JSON or not in COCO's format.
    """
    findings = Findings()
    file = CocoFile(dataset, 'segments', findings)
    folder = join_root(dataset, (dataset.get('data_prefix') or {}).get('seg') or '')
    # mmdet reads the map under the image's name, whatever the annotation says.
    labelled = {
        id_: _Labelled(image, str(Path(folder, image.file_name.replace('.jpg', '.png'))))
        for id_, image in file.images.items()
    }
    for _ in file.complete(file.content['categories'], {'isthing': int}, 'categories'):
        pass
    annotated = set()
    for number, record in file.complete(file.content['annotations'], _ANNOTATION, 'annotations'):
        known = labelled.get(record['image_id'])
        if known is None:
            what = f'{file.path}: annotations[{number}] has image_id {record["image_id"]}'
            findings.add(kinds.UNKNOWN_IMAGE, what)
            continue
        if record['segments_info']:
            annotated.add(known.image.id)
        _check_segments(file, record, known)
    file.add_without(annotated)
    file.add_unused()
    look = partial(_look, with_maps=bool(folder))
    for known, seen in look_at_each(look, list(labelled.values())):
        add_photograph(known.image, seen.photograph, findings)
        if folder:
            _check_map(known, seen, findings)
    return Report(f'{dataset["type"]} {file.path}', len(file.images), findings, file.counts)


def _check_segments(file: CocoFile, record: dict, known: _Labelled) -> None:
    what = f'segments_info of image {known.image.id}'
    for _, segment in file.complete(record['segments_info'], _SEGMENT, what):
        place = f'{file.path}: segment {segment["id"]} of {known.image}'
        if segment['id'] in known.listed:
            file.findings.add(kinds.DUPLICATE_ANNOTATION, place)
        known.listed[segment['id']] = segment['area']
        if segment['category_id'] not in file.categories:
            file.findings.add(
                kinds.UNKNOWN_CATEGORY, f'{place} has category_id {segment["category_id"]}'
            )
        file.count(segment['category_id'], known.image.id)
        check_box(segment, known.image, place, file.findings)


def _check_map(known: _Labelled, seen: _Looked, findings: Findings) -> None:
    place = f'{known.map} (image {known.image.id})'
    if isinstance(seen.map, str):
        kind = kinds.MISSING_MAP if seen.map == 'is missing' else kinds.DAMAGED_MAP
        findings.add(kind, f'{place} {seen.map}')
        return
    if not isinstance(seen.photograph, str) and seen.map != seen.photograph:
        (height, width), (image_height, image_width) = seen.map, seen.photograph
        findings.add(
            kinds.MAP_SIZE, f'{place} is {width}x{height}, its image {image_width}x{image_height}'
        )
    for id_ in sorted(seen.drawn.keys() - known.listed.keys() - {_VOID}):
        findings.add(kinds.SEGMENT_NOT_LISTED, f'{place}: {id_}, {seen.drawn[id_]} pixels')
    for id_, area in known.listed.items():
        if id_ not in seen.drawn:
            findings.add(kinds.SEGMENT_NOT_DRAWN, f'{place}: {id_}')
        elif area != seen.drawn[id_]:
            what = f'{place}: {id_} has {seen.drawn[id_]} pixels, segments_info says {area:g}'
            findings.add(kinds.SEGMENT_AREA, what)


def _look(known: _Labelled, with_maps: bool) -> _Looked:
    photograph = _read_size(known.image.path)
    if not with_maps:
        return _Looked(photograph, '')
    picture = read_photograph(known.map)
    if isinstance(picture, str):
        return _Looked(photograph, picture)
    return _Looked(photograph, picture.shape[:2], _count_ids(picture))


def _read_size(path: str) -> str | tuple[int, int]:
    picture = read_photograph(path)
    return picture if isinstance(picture, str) else picture.shape[:2]


def _count_ids(picture: np.ndarray) -> dict[int, int]:
    """Pixels of each id in a map (H, W, 3) in BGR: id = R + 256 G + 256^2 B."""
    blue, green, red = (picture[..., channel].astype(np.int32) for channel in range(3))
    ids = (red + 256 * green + 65536 * blue).ravel()
    # Sorting runs of equal ids rather than pixels is many times faster.
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    lengths = np.diff(starts, append=ids.size)
    values, places = np.unique(ids[starts], return_inverse=True)
    counts = np.bincount(places.ravel(), lengths).astype(int)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
