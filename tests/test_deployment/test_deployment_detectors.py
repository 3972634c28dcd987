"""Detectors as modules with fixed output shapes predict what mmdet predicts."""

import pytest
import small_detectors
import torch
from stacks import float16_on_cpu
from torch import nn

import mmfocalnet  # noqa: F401 - before mmdet
from mmfocalnet.deployment.detectors import build_detector
from mmfocalnet.deployment.operators import onnx_translations
from mmfocalnet.errors import ConfigError
from mmfocalnet.ops import use_path

NAMES = sorted(small_detectors.GAIN)
HAS_OPERATORS = hasattr(torch.library, 'custom_op')
needs_operators = pytest.mark.skipif(not HAS_OPERATORS, reason='PyTorch before 2.4')
SHAPES = [(1, 3, 96, 128), (2, 3, 90, 117)]


@torch.no_grad()
def detect(detector, images):
    return dict(zip(detector.detector.output_names, detector(images), strict=True))


def pairs(found, expected, box_tolerance, score_tolerance):
    """For each expected detection the index of the found one; fails unless one to one."""
    count = len(expected['scores'])
    assert (found['scores'] > 0).sum() == count
    found = {key: value[:count] for key, value in found.items()}
    box_difference = (found['boxes'][:, None] - expected['boxes']).abs().amax(-1)
    score_difference = (found['scores'][:, None] - expected['scores']).abs()
    same = (found['labels'][:, None] == expected['labels']) & (box_difference <= box_tolerance)
    same &= score_difference <= score_tolerance
    index = same.float().argmax(0)
    assert same.any(0).all()
    assert len(index.unique()) == count
    return index


def paste(masks, boxes, size):
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    return _do_paste_mask(masks[:, None], boxes, *size, skip_empty=False)[0] >= 0.5


def check_equals_mmdet(model, images, tolerances=(1e-3, 1e-5), **settings):
    found = detect(small_detectors.PaddedDetector(model, **settings), images)
    for i, expected in enumerate(small_detectors.predict(model, images)):
        assert len(expected) > 5
        one = {key: value[i] for key, value in found.items()}
        boxes = dict(boxes=expected.bboxes, scores=expected.scores, labels=expected.labels)
        index = pairs(one, boxes, *tolerances)
        assert (one['scores'].diff() <= 0).all()
        if 'masks' in found:
            pasted = paste(one['masks'][index], expected.bboxes, images.shape[2:])
            assert expected.masks.any() and not expected.masks.all()
            assert (pasted != expected.masks).float().mean() < 1e-4


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_equals_mmdet(name, shape):
    check_equals_mmdet(small_detectors.build(name), torch.randn(shape))


SOFTMAX = dict(type='CrossEntropyLoss', use_sigmoid=False, _delete_=True)
RETINANET = dict(
    type='RetinaHead',
    num_classes=4,
    in_channels=32,
    feat_channels=32,
    anchor_generator=dict(
        type='AnchorGenerator', scales=[4, 8], ratios=[0.5, 2], strides=[8, 16, 32]
    ),
    _delete_=True,
)
# The decoder of mmdet's DINO needs 256 channels.
WIDE = dict(embed_dims=256)
DINO_OF_MMDET = dict(
    type='DINO',
    neck=dict(out_channels=256),
    encoder=dict(layer_cfg=dict(self_attn_cfg=WIDE, ffn_cfg=WIDE)),
    decoder=dict(layer_cfg=dict(self_attn_cfg=WIDE, cross_attn_cfg=WIDE, ffn_cfg=WIDE)),
    positional_encoding=dict(num_feats=128),
    bbox_head=dict(type='DINOHead', embed_dims=256),
)
# Fewer proposals than the output has places for: the others are no detections.
FEW_PROPOSALS = dict(rpn=dict(nms=dict(iou_threshold=0.01)), rcnn=dict(score_thr=0.05))
OPTIONS = {
    'retinanet': ('atss', dict(type='RetinaNet', bbox_head=RETINANET)),
    'softmax': ('atss', dict(bbox_head=dict(loss_cls=SOFTMAX), test_cfg=dict(score_thr=0.5))),
    'nms of all classes': ('atss', dict(test_cfg=dict(nms=dict(class_agnostic=True)))),
    'faster_rcnn': ('mask_rcnn', dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))),
    'few proposals': ('mask_rcnn', dict(test_cfg=FEW_PROPOSALS)),
    'shared boxes': ('mask_rcnn', dict(roi_head=dict(bbox_head=dict(reg_class_agnostic=True)))),
    'shared masks': ('mask_rcnn', dict(roi_head=dict(mask_head=dict(class_agnostic=True)))),
    'one map': ('mask_rcnn', dict(roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[8])))),
    'DINO of mmdet': ('dino', DINO_OF_MMDET),
}


@pytest.mark.parametrize('name', OPTIONS)
def test_other_settings_equal_mmdet(name):
    base, options = OPTIONS[name]
    model, images = small_detectors.build(base, **options), torch.randn(SHAPES[1])
    # Random weights of DINO amplify rounding.
    check_equals_mmdet(model, images, tolerances=(0.05, 1e-4) if base == 'dino' else (1e-3, 1e-5))


def test_gathered_attention_equals_mmdet():
    model, images = small_detectors.build('dino'), torch.randn(SHAPES[1])
    check_equals_mmdet(model, images, tolerances=(0.1, 1e-3), grid_sample=False)


def test_maps_of_boxes_equal_mmdet():
    """Also at the sizes where the map changes."""
    detector = build_detector(small_detectors.build('mask_rcnn'))
    (stage,) = detector.box_stages
    side = torch.cat([torch.rand(500) * 200, torch.arange(0, 257, 16)])
    boxes = torch.stack([torch.zeros_like(side)] * 2 + [side, side], -1)
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], -1)
    expected = stage.extractor.map_roi_levels(rois, len(stage.extractor.roi_layers))
    assert len(expected.unique()) > 2
    assert torch.equal(stage._levels(boxes), expected)


@pytest.mark.parametrize('name', ['atss', 'mask_rcnn'])
def test_without_detections_everything_is_zero(name):
    model = small_detectors.build(name)
    head = model.bbox_head if name == 'atss' else model.roi_head
    head.test_cfg.score_thr = 1.0
    found = detect(small_detectors.PaddedDetector(model), torch.randn(SHAPES[1]))
    assert found['scores'].shape == (2, head.test_cfg.max_per_img)
    assert not any(value.any() for value in found.values())


@float16_on_cpu
@pytest.mark.parametrize('name', NAMES)
def test_half_precision_gives_float32(name):
    model, images = small_detectors.build(name), torch.randn(SHAPES[1])
    full = detect(small_detectors.PaddedDetector(model), images)
    half = detect(small_detectors.PaddedDetector(model.half()), images)
    assert {key: value.dtype for key, value in half.items()} == {
        key: value.dtype for key, value in full.items()
    }
    assert (half['scores'] - full['scores']).abs().median() < 0.05


def subclass(module, method):
    """Make the module's class one that overrides a method."""
    kind = type(module)
    module.__class__ = type(f'Other{kind.__name__}', (kind,), {method: lambda self: None})


UNSUPPORTED = [
    ('atss', 'bbox_head', '_predict_by_feat_single'),
    ('mask_rcnn', 'rpn_head', '_bbox_post_process'),
    ('mask_rcnn', 'roi_head', 'predict_bbox'),
    ('mask_rcnn', 'roi_head.bbox_head', '_predict_by_feat_single'),
    ('mask_rcnn', 'roi_head.mask_head', 'predict_by_feat'),
    ('mask_rcnn', 'roi_head.bbox_roi_extractor', 'map_roi_levels'),
    ('dino', '', 'pre_decoder'),
    ('dino', 'bbox_head', 'forward'),
    ('dino', 'decoder', 'forward'),
]


@pytest.mark.parametrize(('name', 'part', 'method'), UNSUPPORTED, ids=' '.join)
def test_other_predictions_are_refused(name, part, method):
    model = small_detectors.build(name)
    subclass(model.get_submodule(part), method)
    with pytest.raises(
        ConfigError, match=f'Other{type(model.get_submodule(part)).__mro__[1].__name__}'
    ):
        build_detector(model)


def test_other_models_and_settings_are_refused():
    with pytest.raises(ConfigError, match='Linear'):
        build_detector(nn.Linear(1, 1))
    model = small_detectors.build('atss')
    model.bbox_head.test_cfg.nms.type = 'soft_nms'
    with pytest.raises(ConfigError, match='soft_nms'):
        build_detector(model)


def shapes(dynamic):
    if not dynamic:
        return None
    # Backbones need two positions per direction in the last map.
    height, width = (torch.export.Dim(name, min=33) for name in ('height', 'width'))
    return ({0: torch.export.Dim('batch'), 2: height, 3: width},)


@needs_operators
@pytest.mark.parametrize('name', ['atss', 'dino'])
def test_torch_export_records_plain_operators(name):
    detector = small_detectors.PaddedDetector(small_detectors.build(name)).eval()
    images = torch.randn(SHAPES[1])
    with torch.no_grad(), use_path('reference'):
        program = torch.export.export(detector, (images,), strict=False)
        expected = detector(images)
    targets = {str(node.target).split('.')[0] for node in program.graph.nodes}
    assert ('mmfocalnet' in targets) == (name == 'atss')
    other = torch.randn(SHAPES[1])
    found = program.module()(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(program.module()(other)[1], expected[1])


class Runtimes:
    """A detector as an ONNX file in onnxruntime and OpenVINO."""

    def __init__(self, detector, images, path, dynamic):
        import onnx
        import onnxruntime
        import openvino

        with torch.no_grad(), use_path('reference'):
            program = torch.onnx.export(
                detector,
                (images,),
                dynamo=True,
                opset_version=18,
                dynamic_shapes=shapes(dynamic),
                custom_translation_table=onnx_translations(),
                input_names=['images'],
                output_names=list(detector.detector.output_names),
                verbose=False,
            )
        program.save(path)
        self.names = detector.detector.output_names
        self.operators = {node.op_type for node in onnx.load(path).graph.node}
        self.onnxruntime = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
        self.openvino = openvino.Core().compile_model(openvino.convert_model(path), 'CPU', settings)

    def __call__(self, images):
        feed = {'images': images.numpy()}
        for outputs in (self.onnxruntime.run(None, feed), self.openvino(feed).values()):
            outputs = map(torch.from_numpy, outputs)
            yield dict(zip(self.names, outputs, strict=True))


EXPORTS = [
    ('atss', {}, True),
    ('mask_rcnn', {}, False),
    ('mask_rcnn', {}, True),
    ('cascade_rcnn', {}, True),
    ('dino', {}, True),
    ('dino', dict(grid_sample=False), False),
]
OPERATORS = dict(
    atss={'NonMaxSuppression'},
    mask_rcnn={'NonMaxSuppression', 'RoiAlign'},
    cascade_rcnn={'NonMaxSuppression', 'RoiAlign'},
    dino={'GridSample'},
)
STANDARD = {'NonMaxSuppression', 'RoiAlign', 'GridSample'}


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize(('name', 'settings', 'dynamic'), EXPORTS, ids=str)
def test_runtimes_equal_pytorch(name, settings, dynamic, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
        pytest.importorskip(package)
    detector = small_detectors.PaddedDetector(small_detectors.build(name), **settings).eval()
    images = torch.randn(SHAPES[1])
    runtimes = Runtimes(detector, images, tmp_path / 'model.onnx', dynamic)
    assert runtimes.operators & STANDARD == (set() if settings else OPERATORS[name])
    batches = [images, torch.randn(SHAPES[1])]
    if dynamic:
        batches += [torch.randn(1, 3, 64, 70), torch.randn(3, 3, 161, 96)]
    for batch in batches:
        expected = detect(detector, batch)
        for found in runtimes(batch):
            for i in range(len(batch)):
                detections = expected['scores'][i] > 0
                want = {key: value[i][detections] for key, value in expected.items()}
                one = {key: value[i] for key, value in found.items()}
                index = pairs(one, want, 0.1, 1e-3)
                if 'masks' in want:
                    assert (one['masks'][index] - want['masks']).abs().max() < 5e-3
