"""Compare the outputs of an exported file with those of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmfocalnet.errors import UserError

Outputs = Mapping[str, np.ndarray]


class ExportError(UserError):
    """An exported file that does not compute what the model computes."""


@dataclass(frozen=True)
class Tolerance:
    """Differences that are accepted.

    Attributes:
        relative: Of maps, relative to the largest value of each.
        iou: Minimum IoU of matching boxes.
        score: Of the scores of matching boxes.
        unmatched: Share of the detections that may have no match.
        unmatched_score: Maximum score of these above the lowest score of the image.
        mask: Mean difference of the probabilities of a mask.
    """

    relative: float
    iou: float
    score: float
    unmatched: float
    unmatched_score: float
    mask: float


# A list of detections ends at a number of them and a minimum score: the last may differ.
FLOAT32 = Tolerance(
    relative=1e-4, iou=0.99, score=1e-3, unmatched=0.05, unmatched_score=1e-3, mask=1e-3
)
# Numbers in half precision have 11 significant bits, an error of 5e-4 each, which grows over the
# layers. UperNet with FocalNet-T has 9e-4 of the largest value. NMS keeps one of two overlapping
# boxes; if their scores, of any height, are nearly equal, rounding decides which.
FLOAT16 = Tolerance(relative=2e-2, iou=0.9, score=2e-2, unmatched=0.2, unmatched_score=1, mask=5e-2)


def compare(expected: Outputs, found: Outputs, tolerance: Tolerance) -> str:
    """Compare outputs by name.

    Args:
        expected: The outputs of PyTorch.
        found: The outputs of the file, for the same input.
        tolerance: Accepted differences.

    Returns:
        The largest differences, in one line.

    Raises:
        ExportError: If a difference is larger, or a value is not finite.
    """
    for name, values in expected.items():
        other = found[name]
        if other.shape != values.shape or other.dtype != values.dtype:
            raise ExportError(
                f'The output {name} is {other.dtype} {other.shape}, expected {values.dtype} '
                f'{values.shape}. {_REPORT}'
            )
        if not np.isfinite(other).all():
            raise ExportError(f'The output {name} has values that are NaN or infinite. {_REPORT}')
    if 'boxes' in expected:
        return _compare_detections(expected, found, tolerance)
    return ', '.join(
        _compare_maps(name, values, found[name], tolerance) for name, values in expected.items()
    )


_REPORT = (
    'Nothing was written. If --fp16 was specified, export without it. Otherwise try another '
    'format, and report the model as a bug.'
)


def _compare_maps(name: str, expected: np.ndarray, found: np.ndarray, tolerance: Tolerance) -> str:
    difference = float(np.abs(found - expected).max(initial=0))
    largest = float(np.abs(expected).max(initial=0))
    relative = difference / largest if largest else difference
    if not relative <= tolerance.relative:
        raise ExportError(
            f'The output {name} differs from PyTorch by {difference:.2g}, {relative:.2g} of the '
            f'largest value, expected at most {tolerance.relative:g}. {_REPORT}'
        )
    return f'{name} {difference:.1e} ({relative:.1e} of the largest value)'


def _compare_detections(expected: Outputs, found: Outputs, tolerance: Tolerance) -> str:
    """Match the detections of each image one to one."""
    pairs, without_match = [], 0
    for image in range(len(expected['boxes'])):
        one, other = (
            {name: values[image] for name, values in outputs.items()}
            for outputs in (expected, found)
        )
        matches, unmatched = _match(one, other, tolerance)
        if not _are_few_and_low(unmatched, one['scores'], tolerance):
            raise ExportError(
                f'{len(unmatched)} of {len(matches) + len(unmatched)} detections differ from '
                f'PyTorch, the first with score {max(unmatched):.4f}: expected an IoU of at least '
                f'{tolerance.iou} and scores within {tolerance.score:g}. {_REPORT}'
            )
        without_match += len(unmatched)
        pairs += [(one, other, *match) for match in matches]
    if not pairs:
        return 'no detections in PyTorch or the file: specify a real --image to compare some'
    lowest = min(pair[4] for pair in pairs)
    score = max(abs(one['scores'][i] - other['scores'][j]) for one, other, i, j, _ in pairs)
    others = f', {without_match} have no match' if without_match else ''
    text = (
        f'{len(pairs)} detections match one to one{others}: smallest IoU {lowest:.5f}, largest '
        f'difference of scores {score:.1e}'
    )
    if 'masks' not in expected:
        return text
    mask = max(np.abs(one['masks'][i] - other['masks'][j]).mean() for one, other, i, j, _ in pairs)
    if not mask <= tolerance.mask:
        raise ExportError(
            f'The probabilities of a mask differ from PyTorch by {mask:.2g} on average, expected '
            f'at most {tolerance.mask:g}. {_REPORT}'
        )
    return f'{text}, largest mean difference of masks {mask:.1e}'


def _match(
    expected: Outputs, found: Outputs, tolerance: Tolerance
) -> tuple[list[tuple[int, int, float]], list[float]]:
    """Match detections of an image, best first.

    Returns:
        The indices of matching detections with their IoU, and the scores of the others.
    """
    free = found['scores'] > 0
    scores = expected['scores'][expected['scores'] > 0]
    overlaps = _ious(expected['boxes'], found['boxes'])
    matches, unmatched = [], []
    for i, score in enumerate(scores):
        close = np.abs(found['scores'] - score) <= tolerance.score
        candidates = free & close & (found['labels'] == expected['labels'][i])
        j = int(np.where(candidates, overlaps[i], -1).argmax())
        if candidates[j] and overlaps[i, j] > tolerance.iou:
            free[j] = False
            matches.append((i, j, float(overlaps[i, j])))
        else:
            unmatched.append(float(score))
    return matches, unmatched + found['scores'][free].tolist()


def _are_few_and_low(unmatched: list[float], scores: np.ndarray, tolerance: Tolerance) -> bool:
    """Whether detections may have no match; ``scores`` are those of PyTorch."""
    scores = scores[scores > 0]
    highest = scores.min(initial=1) + tolerance.unmatched_score
    are_few = len(unmatched) <= tolerance.unmatched * len(scores)
    return are_few and max(unmatched, default=0) <= highest


def _ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4); equal boxes without area have 1."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (high - low).clip(0).prod(2)
    areas = [(group[:, 2:] - group[:, :2]).clip(0).prod(1) for group in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - intersection
    same = np.abs(boxes[:, None] - others[None]).max(2, initial=0) < 1e-2
    return np.where(same, 1.0, intersection / np.maximum(union, 1e-9))
