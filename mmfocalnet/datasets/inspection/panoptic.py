"""Inspection of annotations in COCO's panoptic format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from mmfocalnet.datasets.classes import join_root
from mmfocalnet.datasets.image_faults import Seen, read_photograph
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.annotations import ID, NUMBER, AnnotationFile, Photograph, Place
from mmfocalnet.datasets.inspection.coco import add_photograph, look_at_photograph
from mmfocalnet.datasets.inspection.findings import Findings, Report, short
from mmfocalnet.datasets.inspection.progress import look_at_each

_ANNOTATION = {'image_id': ID, 'segments_info': (list,)}
# mmdet looks categories up by integers only.
_SEGMENT = {'id': (int,), 'category_id': (int,), 'area': NUMBER}
# What panoptic maps have where nothing is labelled.
_VOID = 0
# The three channels of a map hold no larger one.
_MAX_ID = 2**24 - 1


@dataclass
class _Labelled:
    """An image, its map and its segments in segments_info."""

    image: Photograph
    map: str
    listed: dict[int, float] = field(default_factory=dict)


@dataclass
class _Looked:
    """What was seen of an image and its map: size or what is wrong; pixels of each segment."""

    photograph: Seen
    map: str | tuple[int, int]
    drawn: dict[int, int] = field(default_factory=dict)


def inspect_panoptic(dataset: dict, metrics: Sequence[dict], with_images: bool) -> Report:
    """Inspect a panoptic dataset.

    Args:
        dataset: Config of a ``CocoPanopticDataset``.
        metrics: Configs of the metrics that compare predictions with its annotation file.
        with_images: Whether to read the images and maps as well; without, it is only checked
            that the maps exist.

    Returns:
        What is wrong, and how many segments each class has.

    Raises:
        ConfigError: If the config's classes are not strings.
        DataError: If the annotation file is no valid JSON or not in COCO's format.
    """
    file = AnnotationFile(dataset, 'segments', evaluated=bool(metrics))
    findings = file.findings
    folder = join_root(dataset, (dataset.get('data_prefix') or {}).get('seg') or '')
    # mmdet reads the map under the image's name, whatever the annotation has.
    labelled = {
        id_: _Labelled(image, str(Path(folder, image.file_name.replace('.jpg', '.png'))))
        for id_, image in file.images.items()
    }
    flags = {'id': ID, 'isthing': (int, bool)}
    things = {
        record['id']
        for _, record in file.complete(file.category_records, flags, 'categories')
        if record['isthing']
    }
    annotated, kept = set(), set()
    for place, record in file.complete(file.annotations, _ANNOTATION, 'annotations'):
        known = labelled.get(record['image_id'])
        if known is None:
            what = f'{place} has image_id {short(record["image_id"])}'
            findings.add(kinds.UNKNOWN_IMAGE, what)
        elif record['segments_info']:
            annotated.add(known.image.id)
        for part, segment in file.complete(
            record['segments_info'], _SEGMENT, f'annotations[{place.number}].segments_info'
        ):
            if known is not None:
                part.image = known.image
                _check_segment(file, part, segment, known)
                # mmdet leaves out images without things to detect.
                if file.evaluated or segment['category_id'] in things:
                    kept.add(known.image.id)
    file.add_unused(annotated, kept)
    if with_images:
        look = partial(_look, with_maps=bool(folder))
        for known, seen in look_at_each(look, list(labelled.values())):
            add_photograph(known.image, seen.photograph, findings)
            if folder:
                _check_map(known, seen, file)
    elif folder:
        _check_existence(labelled.values(), folder, findings)
    return Report(f'{dataset["type"]} {file.path}', len(file.images), findings, file.counts)


def _check_segment(file: AnnotationFile, place: Place, segment: dict, known: _Labelled) -> None:
    id_, category = segment['id'], segment['category_id']
    if id_ in known.listed:
        file.findings.add(kinds.DUPLICATE_ANNOTATION, str(place))
    if not _VOID < id_ <= _MAX_ID:
        file.findings.add(kinds.IDS, f'{place}: expected 1 to {_MAX_ID}')
    known.listed[id_] = segment['area']
    # mmdet fails on segments of other categories than its classes.
    if category not in file.classes:
        what = 'of no class of the config' if category in file.categories else 'of no category'
        file.findings.add(
            kinds.UNKNOWN_CATEGORY, f'{place} has category_id {short(category)}, {what}'
        )
    file.count(category, known.image.id)
    file.check_flags(place, segment)
    file.check_box(place, segment)


def _check_existence(labelled: Iterable[_Labelled], folder: str, findings: Findings) -> None:
    names = set()
    with suppress(OSError):
        names.update(os.listdir(folder))
    for known in labelled:
        path = Path(known.map)
        # One listing is faster than a question for each of many thousand files.
        if not (path.parent == Path(folder) and path.name in names) and not path.is_file():
            findings.add(kinds.MISSING_MAP, f'{known.map} (image {known.image.id}) is missing')


def _check_map(known: _Labelled, seen: _Looked, file: AnnotationFile) -> None:
    findings = file.findings
    place = f'{known.map} (image {known.image.id})'
    if isinstance(seen.map, str):
        kind = kinds.MISSING_MAP if seen.map == 'is missing' else kinds.DAMAGED_MAP
        findings.add(kind, f'{place} {seen.map}')
        return
    if seen.photograph.size and seen.map != seen.photograph.size:
        (height, width), (image_height, image_width) = seen.map, seen.photograph.size
        findings.add(
            kinds.MAP_SIZE, f'{place} is {width}x{height}, its image {image_width}x{image_height}'
        )
    for id_ in sorted(seen.drawn.keys() - known.listed.keys() - {_VOID}):
        findings.add(kinds.SEGMENT_NOT_LISTED, f'{place}: {id_}, {seen.drawn[id_]} pixels')
    for id_, area in known.listed.items():
        if id_ not in seen.drawn:
            findings.add(kinds.SEGMENT_NOT_DRAWN, f'{place}: {id_}')
        elif area != seen.drawn[id_]:
            what = f'{place}: {id_} has {seen.drawn[id_]} pixels, {short(area)} in segments_info'
            kind = kinds.EVALUATED_AREA if file.evaluated else kinds.SEGMENT_AREA
            findings.add(kind, what)


def _look(known: _Labelled, with_maps: bool) -> _Looked:
    photograph = look_at_photograph(known.image)
    if not with_maps:
        return _Looked(photograph, '')
    picture = read_photograph(known.map)
    if isinstance(picture, str):
        return _Looked(photograph, picture)
    return _Looked(photograph, picture.shape[:2], _count_ids(picture))


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
