"""The comparison of an exported file with PyTorch."""

import numpy as np
import pytest

from mmfocalnet.deployment.check import FLOAT16, FLOAT32, ExportError, compare

RNG = np.random.default_rng(0)


def maps(**changes):
    values = dict(stage0=RNG.random((1, 4, 5, 5), np.float32), stage1=np.ones((1, 2), np.float32))
    return {**values, **changes}


def detections(count=30, images=2):
    """Boxes of 20x20 pixels apart from each other, the best first."""
    corners = RNG.permuted(np.tile(np.arange(count), (images, 1)), axis=1)[..., None] * 30.0
    boxes = np.concatenate([corners, corners, corners + 20, corners + 20], -1)
    scores = np.tile(np.linspace(0.9, 0.1, count), (images, 1))
    return dict(
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=RNG.integers(0, 3, (images, count)),
        masks=RNG.random((images, count, 28, 28), np.float32),
    )


def copy(outputs):
    return {name: values.copy() for name, values in outputs.items()}


def test_equal_maps():
    expected = maps()
    assert 'stage0 0.0e+00' in compare(expected, copy(expected), FLOAT32)


@pytest.mark.parametrize(
    ('change', 'token'),
    [
        (lambda out: out['stage1'].__iadd__(2e-4), 'stage1'),
        (lambda out: out['stage0'].__setitem__((0, 0, 0, 0), np.nan), 'stage0'),
        (lambda out: out.update(stage1=out['stage1'][:, :1]), 'stage1'),
        (lambda out: out.update(stage1=out['stage1'].astype(np.float64)), 'float64'),
    ],
)
def test_different_maps(change, token):
    expected = maps()
    found = copy(expected)
    change(found)
    with pytest.raises(ExportError, match=token):
        compare(expected, found, FLOAT32)


def test_the_tolerance_is_relative_to_the_largest_value():
    expected = maps(stage1=np.array([[0.0, 100.0]], np.float32))
    found = copy(expected)
    found['stage1'][0, 0] = 9e-3
    compare(expected, found, FLOAT32)
    found['stage1'][0, 0] = 1.1e-2
    with pytest.raises(ExportError):
        compare(expected, found, FLOAT32)
    compare(expected, found, FLOAT16)


def test_detections_of_equal_scores_match_in_any_order():
    expected = detections()
    expected['scores'][:] = 0.5
    found = {name: values[:, ::-1].copy() for name, values in expected.items()}
    assert '60 detections' in compare(expected, found, FLOAT32)


@pytest.mark.parametrize(
    'change',
    [
        lambda out: out['boxes'][0, 3].__iadd__(0.3),  # IoU 0.97
        lambda out: out['scores'].__setitem__((0, 3), out['scores'][0, 3] + 2e-3),
        lambda out: out['labels'].__setitem__((0, 3), 9),
        lambda out: out['scores'].__setitem__((1, 3), 0),
        lambda out: out['masks'][1, 3].__isub__(0.01),
        lambda out: out['scores'].__setitem__(slice(None), 0),
    ],
)
def test_different_detections(change):
    expected = detections()
    found = copy(expected)
    change(found)
    with pytest.raises(ExportError):
        compare(expected, found, FLOAT32)


def test_additional_detections_are_different():
    expected = detections(count=1)
    expected['scores'][:] = 0
    found = copy(expected)
    assert 'no detections' in compare(expected, found, FLOAT32)
    found['scores'][0, 0] = 0.5
    with pytest.raises(ExportError, match=r'0\.5000'):
        compare(expected, found, FLOAT32)


def test_a_detection_matches_once():
    expected = detections()
    found = copy(expected)
    found['boxes'][0, 4] = found['boxes'][0, 3]
    found['scores'][0, 4] = found['scores'][0, 3]
    found['labels'][0, 4] = found['labels'][0, 3]
    with pytest.raises(ExportError):
        compare(expected, found, FLOAT32)


def test_the_last_detection_of_a_list_may_be_another():
    expected = detections()
    found = copy(expected)
    found['boxes'][:, -1] += 500
    assert '58 detections' in compare(expected, found, FLOAT16)
    with pytest.raises(ExportError):  # 2 of 30 are more than 5 %
        compare(expected, found, FLOAT32)
    expected = detections(count=50)
    found = copy(expected)
    found['boxes'][:, -1] += 500
    assert '98 detections match one to one, 4 have no' in compare(expected, found, FLOAT32)
    found = copy(expected)
    found['boxes'][:, 0] += 500
    with pytest.raises(ExportError):
        compare(expected, found, FLOAT32)


def test_nms_in_half_precision_may_keep_other_boxes():
    expected = detections()
    found = copy(expected)
    found['boxes'][:, :3] += 500
    assert '54 detections match one to one, 12 have no' in compare(expected, found, FLOAT16)
    found['boxes'][:, 3] += 500
    with pytest.raises(ExportError):
        compare(expected, found, FLOAT16)
