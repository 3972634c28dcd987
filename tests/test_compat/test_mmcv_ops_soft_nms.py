"""soft_nms and nms_match, through mmcv, against loops."""

import math

import numpy as np
import pytest
import torch

# Two overlapping pairs: the IoU of the first two boxes is 0.5, of the last two 0.25.
BOXES = torch.tensor([[0.0, 0, 4, 2], [0, 0, 2, 2], [10, 0, 15, 2], [13, 0, 18, 2]])


@pytest.fixture
def nms(plain_ops):
    return plain_ops('nms')


def random_boxes(count, extent=60.0, size=30.0):
    corner = torch.rand(count, 2) * extent
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * size], dim=1)


def reference_iou(a, b, offset=0):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return shared / (sum(areas) - shared)


def reference_soft_nms(boxes, scores, iou_threshold, sigma, min_score, method, offset):
    """Dets and indices, in place: what is taken or discarded changes places with an end."""
    boxes, rest = boxes.tolist(), [list(pair) for pair in enumerate(scores.tolist())]
    taken = []
    while rest:
        best = max(range(len(rest)), key=lambda k: rest[k][1])
        rest[0], rest[best] = rest[best], rest[0]
        taken.append(rest.pop(0))
        k = 0
        while k < len(rest):
            iou = reference_iou(boxes[taken[-1][0]], boxes[rest[k][0]], offset)
            if method == 'gaussian':
                rest[k][1] *= math.exp(-(iou**2) / sigma)
            elif iou >= iou_threshold:
                rest[k][1] *= 1 - iou if method == 'linear' else 0
            if rest[k][1] < min_score:
                rest[k] = rest[-1]
                rest.pop()
            else:
                k += 1
    return [[*boxes[i], score] for i, score in taken], [i for i, _ in taken]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('min_score', [0, 1e-3, 0.2])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_equals_loop(nms, method, min_score, offset):
    boxes, scores = random_boxes(60).double(), torch.rand(60).double()
    options = (0.3, 0.5, min_score, method, offset)
    dets, kept = nms.soft_nms(boxes, scores, *options)
    expected, indices = reference_soft_nms(boxes, scores, *options)
    assert kept.tolist() == indices and kept.dtype == torch.int64
    torch.testing.assert_close(dets, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('method', ['naive', 'linear'])
def test_soft_nms_orders_equal_scores_as_the_loop(nms, method):
    boxes, scores = random_boxes(80), (torch.rand(80) * 4).round() / 4
    options = (0.3, 0.5, 0.1, method, 0)
    kept = nms.soft_nms(boxes, scores, *options)[1]
    assert kept.tolist() == reference_soft_nms(boxes, scores, *options)[1]


@pytest.mark.parametrize(
    'method, expected',
    [
        ('naive', {0: 0.8, 2: 0.6}),
        ('linear', {0: 0.8, 2: 0.6, 3: 0.5 * 0.75, 1: 0.7 * 0.5}),
        ('gaussian', {0: 0.8, 2: 0.6, 3: 0.5 * math.exp(-1 / 8), 1: 0.7 * math.exp(-1 / 2)}),
    ],
)
def test_soft_nms_of_two_pairs(nms, method, expected):
    scores = np.array([0.8, 0.7, 0.6, 0.5], dtype=np.float32)
    dets, kept = nms.soft_nms(BOXES.numpy(), scores, 0.25, min_score=0.01, method=method)
    assert isinstance(dets, np.ndarray) and kept.tolist() == list(expected)
    np.testing.assert_allclose(dets[:, 4], list(expected.values()), rtol=1e-6)
    np.testing.assert_array_equal(dets[:, :4], BOXES.numpy()[kept])


def test_soft_nms_of_few_low_and_degenerate_boxes(nms):
    dets, kept = nms.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    # The best box is taken whatever its score.
    assert nms.soft_nms(BOXES, torch.full((4,), 1e-4))[1].tolist() == [0]
    dets, kept = nms.soft_nms(torch.zeros(3, 4), torch.rand(3), method='gaussian')
    assert len(kept) == 3 and dets.isfinite().all(), 'an IoU of 0 / 0 is 0'


def test_soft_nms_does_not_change_its_arguments_and_runs_by_class(nms):
    boxes, scores, labels = random_boxes(50), torch.rand(50), torch.arange(50) % 2
    before = scores.clone()
    options = dict(type='soft_nms', iou_threshold=0.3)
    kept = nms.batched_nms(boxes, scores, labels, options)[1]
    assert torch.equal(scores, before)
    by_class = nms.batched_nms(boxes, scores, labels, options | dict(split_thr=10))[1]
    assert torch.equal(kept, by_class)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_soft_nms_computes_half_precision_in_single(nms, dtype):
    boxes, scores = random_boxes(30).to(dtype), torch.rand(30).to(dtype)
    dets, kept = nms.soft_nms(boxes, scores)
    expected, indices = nms.soft_nms(boxes.float(), scores.float())
    assert torch.equal(kept, indices) and torch.equal(dets, expected.to(dtype))


# nms_match


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize('threshold', [0.3, 0.6])
def test_nms_match_equals_loop(nms, threshold, dtype):
    scores = torch.randperm(60).to(dtype)
    dets = torch.cat([random_boxes(60).to(dtype), scores[:, None]], dim=1)
    boxes, remaining = dets[:, :4].double().tolist(), scores.argsort(descending=True).tolist()
    expected = []
    while remaining:
        best = boxes[remaining[0]]
        group = [i for i in remaining if reference_iou(best, boxes[i]) >= threshold]
        expected.append(group)
        remaining = [i for i in remaining if i not in group]
    groups = nms.nms_match(dets, threshold)
    assert [group.tolist() for group in groups] == expected
    assert all(group.dtype == torch.int64 for group in groups)


def test_nms_match_includes_the_threshold(nms):
    dets = torch.cat([BOXES, torch.tensor([[0.5], [0.6], [0.8], [0.7]])], dim=1)
    assert [g.tolist() for g in nms.nms_match(dets, 0.25)] == [[2, 3], [1, 0]]
    assert [g.tolist() for g in nms.nms_match(dets, 0.5)] == [[2], [3], [1, 0]]
    groups = nms.nms_match(dets.numpy(), 0.5)
    assert all(isinstance(group, np.ndarray) for group in groups)
    assert nms.nms_match(dets[:0], 0.5) == []
