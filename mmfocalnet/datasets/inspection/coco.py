"""Inspection of annotations in COCO's format: boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import repr as short
from typing import Any

from mmfocalnet.datasets.image_files import inspect_image
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.annotations import ID, NUMBER, AnnotationFile, Place
from mmfocalnet.datasets.inspection.findings import Report
from mmfocalnet.datasets.inspection.masks import (
    VALID_POLYGONS,
    is_incomplete,
    polygon_fault,
    rle_fault,
)
from mmfocalnet.datasets.inspection.read_files import read_each

# pycocotools ignores larger objects.
_MAX_AREA = 1e10
_OBJECT = {'id': ID, 'image_id': ID, 'category_id': ID, 'area': NUMBER}


def inspect_coco(dataset: dict, metrics: Sequence[dict], with_images: bool) -> Report:
    """Inspect a ``CocoDataset`` or a subclass: see `inspect_dataset`.

    Args:
        dataset: Config of the dataset.
        metrics: Configs of the metrics that compare predictions with its annotation file.
        with_images: Whether to read the images as well.
    """
    file = AnnotationFile(dataset, 'objects', evaluated=bool(metrics))
    needs_masks = "'with_mask': True" in str(dataset.get('pipeline')) or any(
        'segm' in str(metric.get('metric')) for metric in metrics
    )
    annotated, kept, seen = set(), set(), set()
    for place, record in file.complete_records(file.annotations, _OBJECT, 'annotations'):
        if record['id'] in seen:
            file.findings.add(kinds.DUPLICATE_ANNOTATION, str(place))
        seen.add(record['id'])
        _check_category(file, place, record['category_id'])
        image = file.images.get(record['image_id'])
        if image is None:
            file.add_unknown_image(place, record)
            continue
        place.image = image
        annotated.add(image.id)
        file.count(record['category_id'], image.id)
        if _check_object(file, place, record, needs_masks):
            kept.add(image.id)
    file.add_unused(annotated, kept)
    images = list(file.images.values()) if with_images else []
    for image, info in read_each(lambda image: inspect_image(image.path), images):
        file.add_image(image, info)
    return Report(f'{dataset["type"]} {file.path}', len(file.images), file.findings, file.counts)


def _check_category(file: AnnotationFile, place: Place, category: Any) -> None:
    if category not in file.categories:
        # mmdet skips it, which is not intended for "1" instead of 1.
        kind = kinds.UNKNOWN_CATEGORY if isinstance(category, str) else kinds.SKIPPED_CATEGORY
        file.findings.add(kind, f'{place} has category_id {short(category)}')


def _check_object(file: AnnotationFile, place: Place, record: dict, needs_masks: bool) -> bool:
    """Check the fields of an object; True if training or evaluation uses it."""
    is_trained = file.check_box(place, record) and not record.get('ignore')
    if record['category_id'] not in file.classes:
        return False
    file.check_flags(place, record)
    if file.evaluated:
        if record['id'] == 0 or isinstance(record['id'], str):
            file.findings.add(kinds.IDS, f'{place}: expected an integer from 1, renumber them')
        if record['area'] > _MAX_AREA:
            file.findings.add(kinds.AREA, f'{place} has area={short(record["area"])}')
    if needs_masks and (file.evaluated or is_trained):
        is_trained &= _check_mask(file, place, record.get('segmentation'))
    return (is_trained or file.evaluated) and not record.get('iscrowd')


def _check_mask(file: AnnotationFile, place: Place, mask: Any) -> bool:
    """Check a mask; False if training skips its object."""
    if mask is VALID_POLYGONS:
        return True
    if not mask:
        file.findings.add(kinds.NO_MASK, str(place))
    elif isinstance(mask, list):
        used = 0
        for polygon in mask:
            fault = polygon_fault(polygon)
            left_out = isinstance(polygon, list) and is_incomplete(polygon) and not file.evaluated
            if fault:
                kind = kinds.POLYGON_LEFT_OUT if left_out else kinds.POLYGON
                file.findings.add(kind, f'{place} {fault}')
            used += not left_out
        return bool(used)
    elif isinstance(mask, dict) and isinstance(mask.get('counts'), (str, list)):
        fault = rle_fault(mask, place.image.height, place.image.width)
        if fault:
            file.findings.add(kinds.MASK_SIZE, f'{place} {fault}')
    else:
        file.findings.add(kinds.MASK_FORMAT, f'{place}: {short(mask)}')
    return True
