"""Inspection of annotations in COCO's format: boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmfocalnet.datasets.image_faults import Seen, look_at_image
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection.annotations import ID, NUMBER, AnnotationFile, Photograph, Place
from mmfocalnet.datasets.inspection.findings import Findings, Report, short
from mmfocalnet.datasets.inspection.masks import SOUND, is_incomplete, polygon_fault, rle_fault
from mmfocalnet.datasets.inspection.progress import look_at_each

# pycocotools ignores larger objects.
_MAX_AREA = 1e10
# Of each annotation, what mmdet reads.
_OBJECT = {'id': ID, 'image_id': ID, 'category_id': ID, 'area': NUMBER}


def inspect_coco(dataset: dict, metrics: Sequence[dict], with_images: bool) -> Report:
    """Inspect a dataset of boxes and masks.

    Args:
        dataset: Config of a ``CocoDataset`` or of a kind of it.
        metrics: Configs of the metrics that compare predictions with its annotation file.
        with_images: Whether to read the images as well.

    Returns:
        What is wrong, and how many objects each class has.

    Raises:
        ConfigError: If the config's classes are not strings.
        DataError: If the annotation file is no valid JSON or not in COCO's format.
    """
    file = AnnotationFile(dataset, 'objects', evaluated=bool(metrics))
    findings = file.findings
    needs_masks = "'with_mask': True" in str(dataset.get('pipeline')) or any(
        'segm' in str(metric.get('metric')) for metric in metrics
    )
    annotated, kept, seen = set(), set(), set()
    for place, record in file.complete(file.annotations, _OBJECT, 'annotations'):
        id_, category = record['id'], record['category_id']
        if id_ in seen:
            findings.add(kinds.DUPLICATE_ANNOTATION, str(place))
        seen.add(id_)
        if category not in file.categories:
            # mmdet leaves it out, which cannot be intended of "1" for 1.
            kind = kinds.UNKNOWN_CATEGORY if isinstance(category, str) else kinds.SKIPPED_CATEGORY
            findings.add(kind, f'{place} has category_id {short(category)}')
        image = file.images.get(record['image_id'])
        if image is None:
            what = f'{place} has image_id {short(record["image_id"])}'
            findings.add(kinds.UNKNOWN_IMAGE, what)
            continue
        annotated.add(image.id)
        file.count(category, image.id)
        place.image = image
        is_trained = file.check_box(place, record) and not record.get('ignore')
        if category not in file.classes:
            continue
        file.check_flags(place, record)
        if file.evaluated and (id_ == 0 or isinstance(id_, str)):
            findings.add(kinds.IDS, f'{place}: expected an integer from 1 on, number them anew')
        if file.evaluated and record['area'] > _MAX_AREA:
            findings.add(kinds.AREA, f'{place} has area={short(record["area"])}')
        if needs_masks and (file.evaluated or is_trained):
            is_trained &= _check_mask(file, place, record.get('segmentation'))
        if (is_trained or file.evaluated) and not record.get('iscrowd'):
            kept.add(image.id)
    file.add_unused(annotated, kept)
    if with_images:
        for image, seen in look_at_each(look_at_photograph, list(file.images.values())):
            add_photograph(image, seen, findings)
    return Report(f'{dataset["type"]} {file.path}', len(file.images), findings, file.counts)


def look_at_photograph(image: Photograph) -> Seen:
    """Decode an image as mmcv does."""
    return look_at_image(image.path)


def add_photograph(image: Photograph, seen: Seen, findings: Findings) -> None:
    """Compare what was seen of an image with its record.

    Args:
        image: The image as the annotations describe it.
        seen: What was seen of its file.
        findings: Where to put what is wrong.
    """
    findings.add_image(str(image), seen)
    if seen.size and seen.size != (image.height, image.width):
        height, width = seen.size
        turned = ' (as its EXIF tag turns it)' if seen.size == (image.width, image.height) else ''
        findings.add(
            kinds.IMAGE_SIZE,
            f'{image} is {width}x{height}{turned}, the annotations have '
            f'{image.width}x{image.height}',
        )


def _check_mask(file: AnnotationFile, place: Place, mask: Any) -> bool:
    """Check a mask; False if training leaves its object out."""
    if mask is SOUND:
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
