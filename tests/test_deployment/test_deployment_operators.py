"""The operators of detectors compute what mmcv and mmdet compute, in each runtime."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import mmfocalnet  # noqa: F401 - before mmcv.ops
from mmfocalnet.deployment.boxes import suppress
from mmfocalnet.deployment.operators import (
    deformable_attention,
    multilevel_roi_align,
    nms_mask,
    onnx_translations,
)

needs_operators = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='PyTorch before 2.4'
)
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def random_boxes(*shape):
    corner = 100 * torch.rand(*shape, 2)
    return torch.cat([corner, corner + 50 * torch.rand(*shape, 2)], -1)


@pytest.mark.parametrize('agnostic', [False, True])
@pytest.mark.parametrize('count', [200, 12000])  # mmcv suppresses 10000 boxes by group
def test_suppression_equals_mmcv(count, agnostic):
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(2, count), torch.rand(2, count)
    scores[scores < 0.3] = 0
    groups = torch.randint(5, (2, count))
    settings = dict(type='nms', iou_threshold=0.5, class_agnostic=agnostic)
    found = suppress(boxes, scores, groups, settings, 50)
    for i in range(2):
        valid = scores[i] > 0
        detections, kept = batched_nms(
            boxes[i][valid], scores[i][valid], groups[i][valid], settings
        )
        expected = torch.zeros(count)
        expected[valid.nonzero()[kept[:50], 0]] = detections[:50, 4]
        assert torch.equal(found[i], expected)


def test_of_equal_scores_the_first_is_kept():
    boxes = random_boxes(1, 1).expand(1, 40, 4)
    scores = torch.full((1, 40), 0.5)
    scores[0, :3] = 0.1
    kept = nms_mask(boxes, scores, 0.5, 0.2, 10)
    assert kept.nonzero().tolist() == [[0, 3]]


def random_rois(count, images=2):
    boxes = random_boxes(count) * torch.tensor([1, 1, 4, 4])
    boxes[:3, 2:] = boxes[:3, :2]  # empty
    boxes[3] = 0
    boxes[4, 3] = boxes[4, 1]
    return torch.cat([torch.randint(images, (count, 1)), boxes], 1)


def random_maps(images=2, channels=5):
    return [torch.randn(images, channels, int(160 * scale), int(224 * scale)) for scale in SCALES]


@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_pooled_rois_equal_mmdet(sampling_ratio):
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    layer = dict(type='RoIAlign', output_size=(3, 5), sampling_ratio=sampling_ratio)
    extractor = SingleRoIExtractor(layer, 5, [4, 8, 16, 32])
    maps, rois = random_maps(), random_rois(60)
    levels = extractor.map_roi_levels(rois, 4)
    assert len(levels.unique()) > 2
    found = multilevel_roi_align(maps, rois, levels, [3, 5], SCALES, sampling_ratio)
    assert_close(found, extractor(maps, rois), rtol=0, atol=0)


@pytest.mark.parametrize('grid_sample', [True, False])
def test_deformable_attention_equals_mmcv(grid_sample):
    from mmcv.ops.multi_scale_deform_attn import mmcv_attention

    maps, locations, weights = random_attention()
    value = torch.cat([level.unflatten(0, (2, 4)).flatten(3) for level in maps], 3)
    shapes = torch.tensor([level.shape[2:] for level in maps])
    expected = mmcv_attention(value.permute(0, 3, 1, 2), shapes, locations, weights)
    found = deformable_attention(maps, locations, weights, grid_sample)
    assert_close(found, expected, rtol=0, atol=1e-5)


def random_attention():
    """Maps of two images and four heads, locations also outside of them, and weights."""
    maps = [torch.randn(8, 3, 13, 17), torch.randn(8, 3, 1, 9)]
    return maps, 1.4 * torch.rand(2, 30, 4, 2, 3, 2) - 0.2, torch.rand(2, 30, 4, 2, 3)


@needs_operators
def test_registrations_are_complete():
    """Schema, shapes without data, and no output that shares memory with an input."""
    tests = ('test_schema', 'test_faketensor')
    check = torch.library.opcheck
    operators = torch.ops.mmfocalnet
    arguments = random_boxes(2, 9), torch.rand(2, 9), 0.5, 0.1, 4
    check(operators.nms_mask.default, arguments, test_utils=tests)
    levels = torch.randint(4, (9,))
    arguments = random_maps(), random_rois(9), levels, [3, 5], SCALES, 0
    check(operators.multilevel_roi_align.default, arguments, test_utils=tests)


class Suppression(nn.Module):
    def forward(self, boxes, scores):
        return nms_mask(boxes, scores, 0.5, 0.2, 60).float()


class Pooling(nn.Module):
    def forward(self, *inputs):
        *maps, rois, levels = inputs
        return multilevel_roi_align(maps, rois, levels, [3, 5], SCALES, 0)


class Attention(nn.Module):
    def forward(self, first, second, locations, weights):
        return deformable_attention([first, second], locations, weights, grid_sample=False)


def aligned_boxes():
    """Boxes with corners on a grid, so that the overlap of many is exactly the threshold."""
    boxes = random_boxes(2, 200).div(10).round().mul(10)
    return boxes, torch.rand(2, 200)


def equal_scores():
    return random_boxes(2, 200), torch.rand(2, 200).mul(20).round().div(20)


def pooled_inputs():
    return *random_maps(), random_rois(60), torch.randint(4, (60,))


def one_level():
    return *random_maps(), random_rois(60), torch.ones(60, dtype=torch.int64)


def attention_inputs():
    maps, *others = random_attention()
    return *maps, *others


CASES = [
    (Suppression, aligned_boxes),
    (Suppression, equal_scores),
    (Pooling, pooled_inputs),
    (Pooling, one_level),
    (Attention, attention_inputs),
]


@pytest.mark.export
@pytest.mark.timeout(600)
@pytest.mark.parametrize(('module', 'make_inputs'), CASES, ids=lambda case: case.__name__)
def test_runtimes_equal_pytorch(module, make_inputs, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(package)
    import onnxruntime
    import openvino

    path = tmp_path / 'model.onnx'
    torch.onnx.export(
        module(),
        make_inputs(),
        dynamo=True,
        opset_version=18,
        custom_translation_table=onnx_translations(),
        verbose=False,
    ).save(path)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    settings = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = openvino.Core().compile_model(openvino.convert_model(path), 'CPU', settings)
    for _ in range(3):
        inputs = make_inputs()
        expected = module()(*inputs).numpy()
        names = [entry.name for entry in session.get_inputs()]
        feed = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        for (found,) in (session.run(None, feed), compiled(feed).values()):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
